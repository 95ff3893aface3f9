"""Labelled answers of dialogues: which answers a row has, what attributes it gives them, and rows with labels put in. Knows no model.

An answer is what the assistant says after a user turn, tool calls and their results included; its attributes stand at that turn, or in the
row for all turns. Answers of weight 0 are context: nobody labels them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cairn.chat.attributes import turn_attributes
from cairn.chat.format import Attribute, check_values
from cairn.data.rows import Row
from cairn.errors import UserError

Schema = Mapping[str, Attribute]


@dataclass(frozen=True)
class Answer:
    """An answer of a row."""

    user: int
    """The user turn that it follows: `messages[user]`."""
    end: int
    """One past its last message."""
    labels: dict[str, int]
    """What the row says of it, of the attributes asked for."""


def answers(row: Row, schema: Schema) -> Iterator[Answer]:
    """The answers of a dialogue, in order.

    Raises:
        UserError: plain text or a preference, an attribute that the schema does not have, or one out of range.
    """
    where = f"row {row.get('id', '?')}"
    if "messages" not in row or row["messages"][-1]["role"] == "user":
        raise UserError("the row has no answer to label", where=where, remedy="give dialogues that end with an answer")
    messages = row["messages"]
    check_values(schema, row.get("attributes"), f"{where}, attributes")
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    for user, after in zip(users, [*users[1:], len(messages)], strict=True):
        check_values(schema, messages[user].get("attributes"), f"{where}, messages[{user}].attributes")
        said = [i for i in range(user + 1, after) if messages[i]["role"] == "assistant"]
        if said and messages[said[-1]].get("weight", 1):
            yield Answer(user, said[-1] + 1, turn_attributes(row, said[-1]))


def bare(row: Row, answer: Answer) -> list[dict[str, Any]]:
    """The dialogue up to the end of an answer, without attributes: whoever predicts them must not read them."""
    kept = ({key: value for key, value in message.items() if key not in ("attributes", "weight")} for message in row["messages"])
    return list(kept)[: answer.end]


def labelled(row: Row, found: Mapping[int, Mapping[str, int]], schema: Schema) -> Row:
    """The row with attributes at its user turns: {turn: values}; all in the order of the schema, what stood there already kept."""
    messages = [dict(message) for message in row["messages"]]
    for user, values in found.items():
        own = {**values, **turn_attributes(row, user + 1)}
        messages[user]["attributes"] = {name: own[name] for name in schema}
    return {**row, "messages": messages}
