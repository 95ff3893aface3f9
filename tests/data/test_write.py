"""Rows survive a round trip through each kind of file unchanged, nulls inside tool schemas included."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.data.readers import read_rows
from cairn.data.write import write_rows
from cairn.errors import UserError

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(lambda t: t.strip())
value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
tool = st.builds(
    lambda name, schema: {"type": "function", "function": {"name": name, "parameters": schema}},
    text,
    st.dictionaries(text, value, max_size=3),
)
call = st.builds(
    lambda name, given: {"type": "function", "function": {"name": name, "arguments": given}}, text, st.dictionaries(text, value, max_size=2)
)


@st.composite
def row(draw):
    known = {"source": draw(text), "id": draw(text)}
    if draw(st.booleans()):
        return {"text": draw(text), **known}
    question, answer = {"role": "user", "content": draw(text)}, {"role": "assistant", "content": draw(text)}
    if draw(st.booleans()):
        answer["tool_calls"] = draw(st.lists(call, min_size=1, max_size=2))
    out = {"messages": [question, answer], **known}
    if draw(st.booleans()):
        out["tools"] = draw(st.lists(tool, min_size=1, max_size=2))
    if draw(st.booleans()):
        out |= {"language": "en", "meta": draw(st.dictionaries(text, value, max_size=2)), "attributes": {"humor": 1}}
    if draw(st.integers(0, 4)) == 0:
        other = [{"role": "assistant", "content": answer["content"] + "!"}]
        pair = {"chosen": [answer], "rejected": other}
        out = {**out, "messages": [question], **draw(st.sampled_from([pair, {"ranked": [[answer], other]}]))}
    return out


@settings(max_examples=40, deadline=None)
@given(st.lists(row(), min_size=1, max_size=6), st.sampled_from([".jsonl", ".jsonl.gz", ".parquet"]))
def test_rows_come_back_as_they_were(rows, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        assert write_rows(iter(rows), path) == len(rows)
        assert list(read_rows(path)) == rows
        first = path.read_bytes()
        write_rows(read_rows(path), path)
        assert path.read_bytes() == first
        assert [p.name for p in Path(folder).iterdir()] == [path.name]


def test_tool_schemas_gain_no_nulls_in_a_table(tmp_path):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    schemas = [{"properties": {name: {"type": "string", "default": None}}} for name in "ab"]
    rows = [
        {"messages": talk, "source": "s", "id": name, "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}]}
        for name, schema in zip("fg", schemas, strict=True)
    ]
    write_rows(rows, tmp_path / "t.parquet")
    assert list(read_rows(tmp_path / "t.parquet")) == rows


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        write_rows([], tmp_path / "rows.txt")
    assert ".parquet" in caught.value.remedy


def test_nothing_half_written_is_left(tmp_path):
    def broken():
        yield {"text": "one", "source": "s", "id": "1"}
        raise UserError("bad row")

    for name in ("r.jsonl", "r.jsonl.gz", "r.parquet"):
        (tmp_path / name).write_text("before")
        with pytest.raises(UserError):
            write_rows(broken(), tmp_path / name)
        assert (tmp_path / name).read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        write_rows([], tmp_path / "no" / "r.jsonl")
    assert "no" in caught.value.where
