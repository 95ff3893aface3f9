"""Checking collects every problem of a file."""

from __future__ import annotations

import pytest

from cairn.data.check import check_file
from cairn.errors import UserError

GOOD = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


def test_all_problems_are_collected(write):
    bad = {"messages": [{"role": "assistant", "content": "A"}], "extra": 1}
    path = write(
        "x.jsonl", [GOOD, "{", bad, GOOD, {"messages": [{"role": "user", "content": "Q\ud800"}, {"role": "assistant", "content": "A"}]}]
    )
    report = check_file(path)
    assert (report["rows"], report["ok"]) == (5, False)
    assert [(p["row"], p["field"]) for p in report["problems"]] == [
        (2, "(whole row)"), (3, "extra"), (3, "messages[0].role"), (5, "messages[0].content"),
    ]  # fmt: skip
    assert all(set(p) == {"row", "field", "problem", "remedy"} and p["problem"] and p["remedy"] for p in report["problems"])


def test_a_good_file_is_ok(write):
    assert check_file(write("x.jsonl", [GOOD, GOOD])) == {"rows": 2, "ok": True, "problems": []}


def test_an_empty_file_is_a_problem_of_the_whole(write):
    report = check_file(write("x.jsonl", ""))
    assert (report["rows"], report["ok"], report["problems"][0]["row"]) == (0, False, 0)


def test_problems_of_a_folder_name_the_file(write):
    write("set/a.jsonl", [GOOD])
    report = check_file(write("set/b.jsonl", ["{"]).parent)
    assert report["rows"] == 2
    assert report["problems"][0]["problem"].startswith("b.jsonl: not JSON")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        check_file(tmp_path / "no.jsonl")
