"""What a metric is, and what counts as an answer's text. Knows messages as plain dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A named way to score an answer."""

    right: str
    """What counts as right, one line; it is printed beside the numbers."""
    score: Callable[[Any, Message, Mapping[str, Any]], float]
    """(expected, the answer as a message, the row's meta) -> a score in [0, 1]."""


def words(answer: Message) -> str:
    """The text of an answer; an answer that calls a function instead has none that counts."""
    return "" if answer.get("tool_calls") else str(answer.get("content") or "")
