"""What a row is, what is wrong with one, and its normalised content. Knows dialogues (through `chat`); no file.

A row is a plain dict of one of three shapes: `{"messages": […]}` (a dialogue, with optional "tools" and "attributes"),
`{"text": …}` (plain text), or `{"messages": […], "chosen": […], "rejected": […]}` (a preference: the prompt's messages
and two continuations). Each has "source" and "id", may have "language", and keeps anything else under "meta".
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cairn.chat.messages import problems
from cairn.errors import UserError, did_you_mean

Row = dict[str, Any]

KEYS = ("messages", "text", "chosen", "rejected", "tools", "attributes", "source", "language", "id", "meta")
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


def check_row(row: Any, number: int = 1) -> list[Problem]:
    """All that is wrong with a row: empty for a good one."""
    return [Problem(number, error.where or WHOLE, error.what, error.remedy) for error in _errors(row)]


def _errors(row: Any) -> Iterator[UserError]:
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
    yield from _bad_values({k: row[k] for k in ("text", "source", "id", "language", "meta") if k in row})
    if "messages" in row and "text" in row:
        yield RowError("text", "a row holds either 'messages' or 'text', not both", "split it into two rows")
    elif "text" in row:
        yield from _text_errors(row)
    elif "chosen" in row or "rejected" in row:
        yield from _preference_errors(row)
    elif "messages" in row:
        yield from _dialogue_errors(row, row["messages"])
    else:
        yield RowError(WHOLE, "the row holds neither 'messages' nor 'text'", "name the reader that fits the file with --reader")


def _text_errors(row: Row) -> Iterator[UserError]:
    for key in ("chosen", "rejected", "tools", "attributes"):
        if key in row:
            yield RowError(key, f"plain text has no '{key}'", "give 'messages', or remove this key")
    if not isinstance(row["text"], str):
        yield RowError("text", f"'text' must be text, not {_kind(row['text'])}", "write it as a string")
    elif not row["text"].strip():
        yield RowError("text", "the text is empty", "remove the row")


def _preference_errors(row: Row) -> Iterator[UserError]:
    missing = [key for key in ("messages", "chosen", "rejected") if key not in row]
    if missing:
        yield RowError(missing[0], f"a preference needs '{missing[0]}'", "give 'messages', 'chosen' and 'rejected'")
        return
    prompt = row["messages"]
    for key in ("messages", "chosen", "rejected"):
        if not isinstance(row[key], list) or not row[key]:
            yield RowError(key, f"'{key}' must be a list of messages", "give at least one message")
            return
    told: set[tuple[str, str]] = set()
    for key in ("chosen", "rejected"):
        for error in _dialogue_errors(row, prompt + row[key]):
            field = _shift(error.where, len(prompt), key)
            if (field, error.what) not in told:  # what is wrong with the prompt is wrong with both
                told.add((field, error.what))
                yield RowError(field, error.what, error.remedy)
    if row["chosen"] == row["rejected"]:
        yield RowError("rejected", "chosen and rejected are the same", "remove the row: it prefers nothing")


def _dialogue_errors(row: Row, messages: Any) -> Iterator[UserError]:
    found = False
    for error in problems(messages, tools=row.get("tools"), attributes=row.get("attributes")):
        found = True
        yield error
    if found:
        return
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        yield RowError("messages", "no assistant turn: there is nothing to learn from this row", "add the answer, or remove the row")
    elif not any(m.get("weight", 1) for m in answers):
        problem = "every assistant turn has weight 0: there is nothing to learn from this row"
        yield RowError("messages", problem, "give one of them weight 1, or remove the row")


def _shift(field: str, prompt: int, key: str) -> str:
    """The field of a joined dialogue, told in the terms of the preference row."""
    found = re.match(r"messages\[(\d+)\]", field)
    if not found or int(found[1]) < prompt:
        return field
    return f"{key}[{int(found[1]) - prompt}]{field[found.end() :]}"


def _bad_values(value: Any, path: str = "") -> Iterator[RowError]:
    """Text that no tokenizer should see and numbers that are not JSON, wherever they stand."""
    if isinstance(value, str):
        problem = text_problem(value)
        if problem:
            yield RowError(path, *problem)
    elif isinstance(value, float) and not math.isfinite(value):
        yield RowError(path, f"{value} is not a JSON number", "write null or a number")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _bad_values(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _bad_values(inner, f"{path}[{i}]")


def text_problem(text: str) -> tuple[str, str] | None:
    """(problem, remedy) of text with NUL bytes or lone surrogates, else None."""
    if "\0" in text:
        return f"a NUL byte at character {text.index(chr(0))}", "remove it: it is a sign of a broken export or a binary file"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}", "repair the text's encoding"
    return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    if isinstance(value, str) and not value:
        return "empty text"
    return names.get(type(value), type(value).__name__)


# Content


def messages_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The dialogue to learn from: the messages, followed by the chosen ones of a preference. Empty for plain text."""
    return [*row.get("messages", ()), *row.get("chosen", ())]


def reply_text(message: Mapping[str, Any]) -> str:
    """What an assistant's turn says: its content, and its tool calls as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False, sort_keys=True) for call in message.get("tool_calls") or ()]
    return "\n".join(part for part in (message.get("content") or "", *calls) if part)


def content_text(row: Mapping[str, Any]) -> str:
    """All that the row says, roles included, tools not: equal texts are equal rows."""
    if "text" in row:
        return str(row["text"])
    turns = [f"{m['role']}: {reply_text(m)}" for m in messages_of(row)]
    turns += [f"not {m['role']}: {reply_text(m)}" for m in row.get("rejected", ())]
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
