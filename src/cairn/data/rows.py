"""What a row is, what is wrong with one, and its normalised content. Knows dialogues (through `chat`); no file.

A row is a plain dict of one of three shapes: `{"messages": […]}` (a dialogue, with optional "tools" and "attributes"),
`{"text": …}` (plain text), or a preference: the prompt's messages and either two continuations ("chosen" and "rejected") or
several, the best one first ("ranked", a list of lists of messages). Each row has "source" and "id", may have "language", and
keeps anything else under "meta".
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cairn.chat.messages import problems, value_problems
from cairn.errors import UserError, did_you_mean

Row = dict[str, Any]

KEYS = ("messages", "text", "chosen", "rejected", "ranked", "tools", "attributes", "source", "language", "id", "meta")
ANSWERS = ("chosen", "rejected", "ranked")
"""The keys that make a row a preference."""
WHOLE = "(whole row)"
"""The field of a problem that concerns no single field."""


class Problem(NamedTuple):
    """What is wrong with a row."""

    row: int
    """The row's number in its file, from 1: the line of a JSON Lines file, the item of a list, the record of a table."""
    field: str
    """The path of the field, such as `messages[1].content`."""
    problem: str
    remedy: str


class RowError(UserError):
    """A problem met while a row is converted; the reader adds the row's number.

    Args:
        field: the path of the field.
        problem: what is wrong.
        remedy: what to do.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(problem, where=field, remedy=remedy)
        self.field = field


def check_row(row: Any, number: int = 1, *, prompt: bool = False) -> list[Problem]:
    """All that is wrong with a row: empty for a good one.

    Args:
        row: the row.
        number: its number in its file.
        prompt: the row is there to be answered, so that a dialogue may lack the answer that could be learnt from.
    """
    return [Problem(number, error.where or WHOLE, error.what, error.remedy) for error in _errors(row, prompt)]


def _errors(row: Any, prompt: bool) -> Iterator[UserError]:
    if not isinstance(row, dict):
        yield RowError(WHOLE, f"a row must be an object, not {_kind(row)}", 'write {"messages": […]} or {"text": "…"}')
        return
    for key in row:
        if key not in KEYS:
            yield RowError(str(key), f"unknown key '{key}'", did_you_mean(str(key), KEYS) + " (keys of your own belong under 'meta')")
    for key in ("source", "id", "language"):
        if key in row and (not isinstance(row[key], str) or not row[key]):
            yield RowError(key, f"'{key}' must be text, not {_kind(row[key])}", "write it as a string, or leave it out")
    if not isinstance(row.get("meta", {}), dict):
        yield RowError("meta", f"'meta' must be an object, not {_kind(row['meta'])}", "correct it, or leave it out")
    for key in ("text", "source", "id", "language", "meta"):
        yield from value_problems(row.get(key), key)
    if "messages" in row and "text" in row:
        yield RowError("text", "a row holds either 'messages' or 'text', not both", "split it into two rows")
    elif "text" in row:
        yield from _text_errors(row)
    elif any(key in row for key in ANSWERS):
        yield from _preference_errors(row)
    elif "messages" in row:
        yield from _dialogue_errors(row, row["messages"], prompt)
    else:
        yield RowError(WHOLE, "the row holds neither 'messages' nor 'text'", "name the reader that fits the file with --reader")


def _text_errors(row: Row) -> Iterator[UserError]:
    for key in (*ANSWERS, "tools", "attributes"):
        if key in row:
            yield RowError(key, f"plain text has no '{key}'", "give 'messages', or remove this key")
    if not isinstance(row["text"], str):
        yield RowError("text", f"'text' must be text, not {_kind(row['text'])}", "write it as a string")
    elif not row["text"].strip():
        yield RowError("text", "the text is empty", "remove the row")


def _preference_errors(row: Row) -> Iterator[UserError]:
    pair = [key for key in ("chosen", "rejected") if key in row]
    if "ranked" in row and pair:
        yield RowError("ranked", f"a row holds either 'ranked' or '{pair[0]}', not both", "split it into two rows")
        return
    needed = ("messages", "ranked") if "ranked" in row else ("messages", "chosen", "rejected")
    for key in needed:
        if key not in row:
            yield RowError(key, f"a preference needs '{key}'", "give " + ", ".join(f"'{k}'" for k in needed))
            return
    answers = _answers(row)
    if "ranked" in row and len(answers) < 2:
        yield RowError("ranked", "'ranked' must be a list of two answers or more, the best one first", "add the others, or remove the row")
        return
    for field, value in [("messages", row["messages"]), *answers]:
        if not isinstance(value, list) or not value:
            yield RowError(field, f"'{field}' must be a list of messages", "give at least one message")
            return
    told: set[tuple[str, str]] = set()
    for field, answer in answers:
        for error in _continuation_errors(row, field, answer):
            place = _shift(error.where, len(row["messages"]), field)
            if (place, error.what) not in told:  # what is wrong with the prompt is wrong with every answer
                told.add((place, error.what))
                yield RowError(place, error.what, error.remedy)
    if not told:
        yield from _equal_answers(answers)


def _answers(row: Row) -> list[tuple[str, Any]]:
    """(field, answer) of a preference, unchecked."""
    if "ranked" not in row:
        return [(key, row[key]) for key in ("chosen", "rejected")]
    ranked = row["ranked"]
    return [(f"ranked[{i}]", answer) for i, answer in enumerate(ranked)] if isinstance(ranked, list) else []


def _continuation_errors(row: Row, field: str, answer: list[Any]) -> Iterator[UserError]:
    """What is wrong with the prompt followed by an answer, and with an answer in which nobody answers."""
    found = list(_dialogue_errors(row, row["messages"] + answer))
    yield from found
    if not found and not any(m["role"] == "assistant" and m.get("weight", 1) for m in answer):
        yield RowError(field, "no assistant turn to prefer", "add the answer, or remove the row")


def _equal_answers(answers: list[tuple[str, Any]]) -> Iterator[RowError]:
    """Answers that say the same: the order between them is nobody's preference, and their margin would be zero for ever."""
    first: dict[tuple[tuple[str, str], ...], str] = {}
    for field, answer in answers:
        said = tuple((m["role"], reply_text(m).strip()) for m in answer)
        if said in first:
            yield RowError(field, f"{first[said]} and {field} are the same", "remove one of them, or the row: it prefers nothing")
        first.setdefault(said, field)


def _dialogue_errors(row: Row, messages: Any, prompt: bool = False) -> Iterator[UserError]:
    found = False
    for error in problems(messages, tools=row.get("tools"), attributes=row.get("attributes")):
        found = True
        yield error
    if found or prompt:
        return
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        yield RowError("messages", "no assistant turn: there is nothing to learn from this row", "add the answer, or remove the row")
    elif not any(m.get("weight", 1) for m in answers):
        problem = "every assistant turn has weight 0: there is nothing to learn from this row"
        yield RowError("messages", problem, "give one of them weight 1, or remove the row")


def _shift(field: str, prompt: int, key: str) -> str:
    """The field of a dialogue joined of `prompt` messages and the answer `key`, told in the terms of the preference row."""
    found = re.match(r"messages\[(\d+)\]", field)
    if not found or int(found[1]) < prompt:
        return field
    return f"{key}[{int(found[1]) - prompt}]{field[found.end() :]}"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    if isinstance(value, str) and not value:
        return "empty text"
    return names.get(type(value), type(value).__name__)


# Content


def answers_of(row: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The answers of a preference, the best one first, each a list of messages; none for any other row."""
    return list(row["ranked"]) if "ranked" in row else [row["chosen"], row["rejected"]] if "chosen" in row else []


def messages_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The dialogue to learn from: the messages, followed by the best answer of a preference. Empty for plain text."""
    best = answers_of(row)[:1]
    return [*row.get("messages", ()), *(best[0] if best else ())]


def reply_text(message: Mapping[str, Any]) -> str:
    """What an assistant's turn says: its content, and its tool calls as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False, sort_keys=True) for call in message.get("tool_calls") or ()]
    return "\n".join(part for part in (message.get("content") or "", *calls) if part)


def content_text(row: Mapping[str, Any]) -> str:
    """All that the row says, roles included, tools not: equal texts are equal rows."""
    if "text" in row:
        return str(row["text"])
    turns = [f"{m['role']}: {reply_text(m)}" for m in messages_of(row)]
    turns += [f"not {m['role']}: {reply_text(m)}" for answer in answers_of(row)[1:] for m in answer]
    return "\n".join(turns)


def question_text(row: Mapping[str, Any]) -> str:
    """What the user asks: all user turns. Empty for plain text."""
    return "\n".join(m["content"] for m in row.get("messages", ()) if m["role"] == "user")


def normalise(text: str) -> str:
    """Text without what does not change its meaning: compatibility forms, letter case, width and amount of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(text: str) -> str:
    """A 128-bit digest (hex) of the normalised text."""
    return hashlib.blake2b(normalise(text).encode(), digest_size=16).hexdigest()


def content_key(row: Mapping[str, Any]) -> str:
    """The digest of the row's normalised content, tools included: what exact deduplication compares."""
    tools = json.dumps(row["tools"], sort_keys=True, ensure_ascii=False) if row.get("tools") else ""
    return text_key(content_text(row) + tools)


def question_key(row: Mapping[str, Any]) -> str | None:
    """The digest of the normalised question, or None where nothing is asked."""
    question = normalise(question_text(row))
    return text_key(question) if question else None
