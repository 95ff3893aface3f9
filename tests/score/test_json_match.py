"""Equality of JSON, parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.score.json_match import json_equal, json_match, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def reverse_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reverse_keys(value[key]) for key in reversed(value)}
    return [reverse_keys(item) for item in value] if isinstance(value, list) else value


@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_layout_escapes_and_key_order_do_not_matter(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(reverse_keys(value), indent=indent, ensure_ascii=ascii_only)
    assert json_match(json.dumps(value), f"\n{text} ")
    assert json_equal(value, json.loads(text))


@given(VALUES, VALUES)
def test_equality_is_that_of_canonical_text(left: Any, right: Any) -> None:
    def canonical(value: Any) -> Any:  # an independent way: tag every value with its JSON kind
        if isinstance(value, bool) or value is None:
            return ("word", value)
        if isinstance(value, int | float):
            return ("number", value)
        if isinstance(value, str):
            return ("text", value)
        if isinstance(value, list):
            return ("list", tuple(canonical(item) for item in value))
        return ("object", frozenset((key, canonical(item)) for key, item in value.items()))

    assert json_equal(left, right) == (canonical(left) == canonical(right))


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ({"a": 1}, '{"a": 1.0}', True),
        ({"a": 1}, '{"a": true}', False),
        ({"a": 0}, '{"a": false}', False),
        ({"a": None}, "{}", False),
        ([1, 2], "[2, 1]", False),
        ({"a": 1}, 'Here: {"a": 1}', False),
        ({"a": 1}, '{"a": 1, "a": 1}', False),
        ("plain words", '"plain words"', True),
        ("plain words", "plain words", False),
        ('{"a": "1"}', '{"a": 1}', False),
    ],
)
def test_cases(expected: Any, answer: str, right: bool) -> None:
    assert json_match(expected, answer) is right


def test_key_order_on_request() -> None:
    expected = {"a": {"x": 1, "y": 2}, "b": 2}
    assert json_match(expected, '{"a": {"x": 1, "y": 2}, "b": 2}', ordered=True)
    assert not json_match(expected, '{"a": {"y": 2, "x": 1}, "b": 2}', ordered=True)
    assert json_match(expected, '{"b": 2, "a": {"y": 2, "x": 1}}')


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "", "{", "[" * 100_000, "{'a': 1}"])
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own error and ours are both ValueErrors; that is the contract
        parse_json(text)
    assert not json_match("[]", text)
