"""Equality of JSON values, parsed. Knows nothing of schemas or models.

JSON has one kind of number (1 and 1.0 are equal) and keeps booleans apart from numbers (true is not 1), unlike Python.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from cairn.score.metric import Metric, words


class _NotJson(ValueError):
    """The text is not one JSON value."""


def parse_json(text: str) -> Any:
    """The value of a text that is one JSON value and nothing else.

    Raises:
        ValueError: for anything else, and for what JSON forbids though Python's reader takes it: NaN, infinities, a key twice.
    """

    def refuse(word: str) -> Any:
        raise _NotJson(f"{word} is not JSON")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) != len(items):
            raise _NotJson("a key stands twice")
        return out

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=pairs)
    except RecursionError:
        raise _NotJson("nested too deep") from None


def json_equal(left: Any, right: Any, *, ordered: bool = False) -> bool:
    """Whether two parsed values are the same JSON value; `ordered` also asks for the same order of keys."""
    if isinstance(left, bool) or isinstance(right, bool) or left is None or right is None:
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys() or (ordered and list(left) != list(right)):
            return False
        return all(json_equal(value, right[key], ordered=ordered) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(json_equal(a, b, ordered=ordered) for a, b in zip(left, right, strict=True))
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    return isinstance(left, str) and isinstance(right, str) and left == right


def json_match(expected: Any, answer: str, *, ordered: bool = False) -> bool:
    """Whether `answer` is JSON (the whole text) and equal to `expected`, a value or the JSON text of one.

    Args:
        expected: a parsed value; a `str` is read as JSON text where it is such, else it is the string itself.
        answer: what the model wrote.
        ordered: ask for the same order of keys too.
    """
    if isinstance(expected, str):
        with contextlib.suppress(ValueError):
            expected = parse_json(expected)
    try:
        found = parse_json(answer.strip())
    except ValueError:
        return False
    return json_equal(expected, found, ordered=ordered)


METRICS = {
    "json": Metric(
        "the text is JSON and equal to the expected value",
        lambda expected, answer, meta: float(json_match(expected, words(answer))),
    ),
    "json_ordered": Metric(
        "the text is JSON, equal to the expected value, its keys in the expected order",
        lambda expected, answer, meta: float(json_match(expected, words(answer), ordered=True)),
    ),
}
