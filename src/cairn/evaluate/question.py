"""From a suite's rows to the dialogues that are asked: worked examples in front, the question put in the suite's words. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from cairn.data.readers import read_rows
from cairn.errors import UserError, did_you_mean
from cairn.evaluate.suite import QUESTION, Suite

Row = dict[str, Any]
_NAME = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Questions:
    """What a suite asks."""

    rows: list[Row]
    """The questions with their answers."""
    examples: list[Row] = field(default_factory=list)
    """The rows that stand in front of every question, in the order of the suite's `few_shot`; none of them is asked."""


def read_questions(suite: Suite, folder: Path) -> Questions:
    """The rows of a suite's files in `folder`.

    Raises:
        UserError: a file is missing, a row is bad, or an example is not there.
    """
    for name in suite.files():
        if not (folder / name).is_file():
            what = f"the suite '{suite.name}' asks for {name}, which is not there"
            raise UserError(what, where=str(folder), remedy="name the data that belong to it")
    return _read(suite, [folder / name for name in suite.data], [folder / name for name in suite.few_shot_data])


def read_question_file(suite: Suite, file: Path) -> Questions:
    """The rows of one file in place of the suite's own.

    Raises:
        UserError: a row is bad, or an example is not there.
    """
    return _read(suite, [file], [])


def _read(suite: Suite, files: Sequence[Path], more: Sequence[Path]) -> Questions:
    wanted = dict.fromkeys(suite.few_shot)
    examples: dict[str, Row] = {}

    def asked(file: Path) -> Iterator[Row]:
        """The rows of a file that are no examples; those that are, are taken out."""
        for row in read_rows(file, suite.reader):
            if row["id"] not in wanted:
                yield row
                continue
            if row["id"] in examples:
                remedy = "give the rows ids of their own: few-shot examples are named by id"
                raise UserError(f"two rows have the id '{row['id']}'", where=str(file), remedy=remedy)
            examples[row["id"]] = row

    rows = []
    for file in files:
        found = asked(file)
        rows += [row for count, row in zip(range(suite.limit), found, strict=False)] if suite.limit else list(found)
        if wanted:
            for _ in found:  # an example may stand behind the last question that is asked
                pass
    for _ in chain.from_iterable(map(asked, more)):
        pass
    missing = [name for name in suite.few_shot if name not in examples]
    if missing:
        what = f"the suite '{suite.name}' shows the row '{missing[0]}' as an example, and no row has that id"
        where = ", ".join(map(str, [*files, *more]))
        raise UserError(what, where=where, remedy="correct `few_shot`, or name its file under `few_shot_data`")
    return Questions(rows, [examples[name] for name in suite.few_shot])


def question_of(row: Row) -> tuple[list[Row], Row | None]:
    """A dialogue without the assistant's last turns, and the first message that was taken away (what should be answered)."""
    messages = row["messages"]
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end], messages[end] if end < len(messages) else None


def prompt_of(suite: Suite, row: Row, examples: Iterable[Row] = ()) -> list[Row]:
    """The messages that a model gets: the row's system message, the examples, and the row's question.

    Args:
        suite: its `prompt` puts the last user turn of the row, and of each example, into words.
        row: the question.
        examples: rows with their answers, each a dialogue of its own.

    Raises:
        UserError: a row without a user turn or without what `prompt` names, or an example without an answer or with tools.
    """
    question = _put(suite, row, question_of(row)[0])
    shown: list[Row] = []
    for example in examples:
        where = f"suite '{suite.name}', example {example.get('id', '?')}"
        asked, answer = question_of(example) if "messages" in example else ([], None)
        if answer is None:
            raise UserError("an example has no answer", where=where, remedy="name a row of `few_shot` that ends with the right answer")
        if example.get("tools"):
            remedy = "name rows without tools: those of the question are offered"
            raise UserError("an example offers tools of its own", where=where, remedy=remedy)
        shown += [m for m in _put(suite, example, asked) if m["role"] != "system"] + example["messages"][len(asked) :]
    start = 1 if question and question[0]["role"] == "system" else 0
    return question[:start] + shown + question[start:]


def _put(suite: Suite, row: Row, messages: list[Row]) -> list[Row]:
    """The messages with the last user turn in the suite's words."""
    if suite.prompt is None:
        return list(messages)
    where = f"suite '{suite.name}', row {row.get('id', '?')}"
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
    if last is None:
        raise UserError("the row asks nothing: it has no user turn", where=where, remedy="remove the row, or the suite's `prompt`")
    known = {**(row.get("meta") or {}), QUESTION: messages[last]["content"]}

    def value(match: re.Match[str]) -> str:
        if match[1] not in known:
            remedy = did_you_mean(match[1], known) + " (names are `question` and the keys of the row's meta)"
            raise UserError(f"the suite's prompt names '{match[1]}', which the row does not have", where=where, remedy=remedy)
        return str(known[match[1]])

    return [*messages[:last], {**messages[last], "content": _NAME.sub(value, suite.prompt)}, *messages[last + 1 :]]
