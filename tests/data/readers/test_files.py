"""Files as records: layouts, broken files, folders, and reading no more than is needed."""

from __future__ import annotations

import io
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.data.readers import error_of, files, read_outcomes, read_rows
from cairn.errors import UserError

ROW = {"prompt": "Q", "response": "A"}
LINE = json.dumps(ROW)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


def outcomes(path, **more):
    return [(o.number, o.problem.problem if o.problem else "row") for o in read_outcomes(path, **more)]


def test_a_bad_line_is_one_bad_row(write):
    path = write("x.jsonl", [LINE, "{bad", "", "[1]", '"text"', LINE[:-1] + ', "x": NaN}', LINE])
    found = outcomes(path)
    assert [n for n, _ in found] == [1, 2, 4, 5, 6, 7]
    assert found[1][1].startswith("not JSON")
    assert "object" in found[2][1]
    assert "NaN" in found[4][1]
    assert found[0][1] == found[5][1] == "row"


def test_bytes_that_are_no_text_are_one_bad_row(write):
    path = write("x.jsonl", LINE.encode() + b'\n{"prompt": "\xff"}\n' + LINE.encode())
    found = outcomes(path)
    assert [n for n, _ in found] == [1, 2, 3]
    assert "byte 0xff at 12 is not utf-8" in found[1][1]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.txt", "x.unknown"])
@pytest.mark.parametrize("layout", ["lines", "list", "one-line list", "bom"])
def test_json_is_known_by_its_content(write, name, layout):
    content = {
        "lines": f"{LINE}\n{LINE}\n",
        "list": json.dumps([ROW, ROW], indent=2),
        "one-line list": json.dumps([ROW, ROW]),
        "bom": f"\ufeff{LINE}\n{LINE}",
    }
    path = write(name, content[layout])
    assert outcomes(path) == [(1, "row"), (2, "row")]


def test_values_one_after_another(write):
    path = write("x.json", json.dumps(ROW, indent=2) * 2)
    assert outcomes(path) == [(1, "row"), (2, "row")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[", "the file ends inside a JSON list"),
        (f"[{LINE}", "the file ends inside a JSON list"),
        (f"[{LINE},", "the file ends inside a JSON list"),
        (f"[{LINE} {LINE}]", "a comma is missing"),
        (f"[{LINE}, {{bad}}]", "not JSON"),
        (f'[{LINE}, {{"a": "', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no rows"),
    ],
)
def test_a_broken_list_is_told(write, content, told):
    path = write("x.json", content)
    from cairn.data.check import check_file

    report = check_file(path, "prompt_response")
    assert not report["ok"]
    assert told in report["problems"][-1]["problem"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30) | numbers, max_size=3), max_size=8), st.integers(1, 9))
def test_a_list_is_the_same_however_it_is_cut(tmp_path_factory, values, chunk):
    path = tmp_path_factory.mktemp("cut") / "x.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    before, files.CHUNK = files.CHUNK, chunk
    try:
        found = [r.value for r in files.read_records(path, "list", "utf-8") if not r.problem]
    finally:
        files.CHUNK = before
    assert found == values


class Endless(io.RawIOBase):
    """Bytes without end, and how many were read."""

    def __init__(self, start: bytes, again: bytes) -> None:
        self.start, self.again, self.given = start, again, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        piece = (
            self.start + self.again * (len(buffer) // len(self.again) + 1)
            if not self.given
            else self.again * (len(buffer) // len(self.again) + 2)
        )
        shift = 0 if not self.given else (self.given - len(self.start)) % len(self.again)
        buffer[:] = piece[shift : shift + len(buffer)]
        self.given += len(buffer)
        assert self.given < 10_000_000, "the reader goes on and on"
        return len(buffer)


@pytest.mark.parametrize(
    ("name", "start", "again", "separator"),
    [
        ("x.jsonl", b"", LINE.encode() + b"\n", None),
        ("x.json", b"[", LINE.encode() + b",\n", None),
        ("x.csv", b"prompt,response\n", b"Q,A\n", None),
        ("x.txt", b"", b"some words\n\n", "\n\n"),
    ],
)
def test_the_first_rows_of_an_endless_file_come_at_once(write, monkeypatch, name, start, again, separator):
    path = write(name, "x")
    opened = []

    def endless(_):
        opened.append(Endless(start, again))
        return io.BufferedReader(opened[-1])

    monkeypatch.setattr(files, "open_bytes", endless)
    rows = list(itertools.islice(read_rows(path, separator=separator), 3))
    assert len(rows) == 3
    assert max(raw.given for raw in opened) < 1_000_000


def test_a_folder_is_read_in_the_order_of_its_names(write):
    for name in ("b/2.txt", "a.txt", "b/1.txt", ".hidden", "b/.git/x"):
        path = write(f"books/{name}", name)
    rows = list(read_rows(path.parents[2]))
    assert [r["text"] for r in rows] == ["a.txt", "b/1.txt", "b/2.txt"]
    assert [r["id"] for r in rows] == ["a.txt:1", "b/1.txt:1", "b/2.txt:1"]
    assert {r["source"] for r in rows} == {"books"}


def test_a_problem_in_a_folder_names_its_file(write):
    write("set/a.jsonl", [LINE])
    path = write("set/b.jsonl", [LINE, "{"]).parent
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert caught.value.where == f"{path / 'b.jsonl'}, row 2"


def test_errors_name_file_row_field_and_remedy(write):
    path = write("x.jsonl", [LINE, {"prompt": "Q", "response": ""}])
    rows = read_rows(path)
    assert next(rows)
    with pytest.raises(UserError) as caught:
        next(rows)
    assert caught.value.where == f"{path}, row 2, response"
    assert caught.value.remedy
    bad = next(o for o in read_outcomes(path) if o.problem)
    assert str(error_of(bad, path)) == str(caught.value)


def test_missing_empty_and_unknown_files(write, tmp_path):
    for path, word in [(tmp_path / "no.jsonl", "no such file"), (write("e.jsonl", " \n"), "empty"), (write("f/.x", "").parent, "no files")]:
        with pytest.raises(UserError, match=word):
            list(read_rows(path))
    with pytest.raises(UserError) as caught:
        list(read_rows(write("x.jsonl", [{"a": 1, "b": 2}])))
    assert "'a', 'b'" in caught.value.what
    assert "alpaca" in caught.value.remedy
    with pytest.raises(UserError) as caught:
        list(read_rows(write("x.jsonl", [{"prompt": "Q", "response": "A", "conversations": []}])))
    assert "several readers" in caught.value.what
    with pytest.raises(UserError, match="did you mean 'alpaca'"):
        list(read_rows(tmp_path / "x.jsonl", "alpacca"))
    with pytest.raises(UserError, match="plain text"):
        list(read_rows(write("x.txt", "words"), "alpaca"))
    with pytest.raises(UserError, match="Parquet"):
        list(read_rows(write("x.parquet", "PAR1 but not really")))
