"""Which rows a suite asks, and which it only shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cairn.errors import UserError
from cairn.evaluate.question import prompt_of, read_question_file, read_questions
from cairn.evaluate.suite import Suite

Row = dict[str, Any]


def row(identity: str) -> Row:
    return {"messages": [{"role": "user", "content": f"Q{identity}"}, {"role": "assistant", "content": f"A{identity}"}], "id": identity}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, ids in (("a.jsonl", "123"), ("b.jsonl", "456"), ("train.jsonl", "78")):
        (tmp_path / name).write_text("".join(json.dumps(row(i)) + "\n" for i in ids))
    return tmp_path


def ids(rows: list[Row]) -> str:
    return "".join(r["id"] for r in rows)


def test_an_example_is_shown_and_not_asked_wherever_it_stands(folder: Path) -> None:
    suite = Suite(name="x", data=["a.jsonl", "b.jsonl"], few_shot=["8", "6", "1"], few_shot_data=["train.jsonl"], limit=2)
    questions = read_questions(suite, folder)
    assert (ids(questions.rows), ids(questions.examples)) == ("2345", "861"), "the limit counts what is asked"
    assert ids(read_question_file(suite.model_copy(update={"few_shot": ["1"]}), folder / "a.jsonl").rows) == "23"


def test_without_examples_nothing_is_left_out(folder: Path) -> None:
    questions = read_questions(Suite(name="x", data=["a.jsonl", "b.jsonl"]), folder)
    assert (ids(questions.rows), questions.examples) == ("123456", [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"few_shot": ["9"]}, "shows the row '9'"),
        ({"few_shot": ["1"], "few_shot_data": ["a.jsonl"]}, "two rows have the id '1'"),
        ({"few_shot_data": ["no.jsonl"]}, "asks for no.jsonl"),
    ],
)
def test_mistakes_are_told(folder: Path, change: Row, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(Suite(name="x", data=["a.jsonl"], **change), folder)


def test_braces_that_name_nothing_stay() -> None:
    suite = Suite(name="x", prompt='Write {"city": …} for {question}{}')
    assert prompt_of(suite, row("1"))[0]["content"] == 'Write {"city": …} for Q1{}'


def test_an_answer_of_several_turns_is_shown_whole() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    example = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, call, {"role": "tool", "content": "{}"}]
    example += [{"role": "assistant", "content": "A"}]
    messages = prompt_of(Suite(name="x", prompt="> {question}"), row("1"), [{"messages": example, "id": "e"}])
    assert [m["content"] for m in messages] == ["> Q", "", "{}", "A", "> Q1"]
