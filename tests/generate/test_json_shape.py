"""Where in JSON a text stands: against Python's reader, on any JSON, however it is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.generate.json_shape import JsonShape

FLOATS = st.floats(-1e90, 1e90).filter(lambda x: x == 0 or abs(x) > 1e-90)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), FLOATS, st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=4)),
    max_leaves=20,
)


@given(VALUES, st.booleans(), st.integers(1, 7))
def test_json_passes_and_ends_where_it_began(value: object, ascii: bool, piece: int) -> None:
    data = json.dumps(value, ensure_ascii=ascii).encode()
    state: JsonShape | None = JsonShape()
    for at in range(0, len(data), piece):
        assert state is not None
        state = state.after(data[at : at + piece])
    assert state is not None
    assert (state.keys, state.quoted, state.key) == ((), False, None)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 65,
        "1e999",
        '{"a": -1.5E-123',
        "[" * 65,
        '{"a": 1, "a"',
        '{"a": 1, "\\u0061"',
        '[{"b": {"a": [1], "c": "a,\\"a", "a"',
        '{"": "", ""',
    ],
)
def test_what_readers_do_not_take_is_seen(text: str) -> None:
    assert JsonShape().after(text.encode()) is None
    assert JsonShape().after(text[:-1].encode()) is not None


def test_equal_keys_of_different_objects_and_long_texts_pass() -> None:
    text = '[{"a": {"a": "' + "9" * 500 + "[" * 100 + '"}}, {"a": 1}, ["a", "a"], "a", "a"]'
    assert JsonShape().after(text.encode()) is not None


def test_nothing_is_looked_at_before_the_json_begins() -> None:
    state = JsonShape(b"<call>").after(b"9" * 99 + b"<call" + b"<call>")
    assert state is not None
    assert state.after(b"9" * 65) is None
