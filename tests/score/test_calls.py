"""Function calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.score.calls import call_match

WEATHER = {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}
TIME = {"name": "time", "arguments": {}}


def says(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": call} for call in calls]}


def test_one_call() -> None:
    assert call_match(WEATHER, says(WEATHER))
    assert call_match([WEATHER], says({"name": "weather", "arguments": {"days": 2.0, "city": "Oslo"}}))
    assert call_match({"type": "function", "function": WEATHER}, says(WEATHER))
    assert call_match(WEATHER, says({"name": "weather", "arguments": json.dumps(WEATHER["arguments"])}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Weather", "arguments": {"city": "Oslo", "days": 2}},
        {"name": "weather", "arguments": {"city": "oslo", "days": 2}},
        {"name": "weather", "arguments": {"city": "Oslo"}},
        {"name": "weather", "arguments": {"city": "Oslo", "days": "2"}},
        {"name": "weather", "arguments": {"city": "Oslo", "days": 2, "unit": "C"}},
        {"name": "weather", "arguments": "{broken"},
        {"name": "weather", "arguments": "[]"},
        {"arguments": {"city": "Oslo", "days": 2}},
    ],
)
def test_another_call_is_wrong(wrong: dict[str, Any]) -> None:
    assert not call_match(WEATHER, says(wrong))


def test_several_calls_in_any_order_and_as_often_as_asked() -> None:
    assert call_match([WEATHER, TIME, TIME], says(TIME, WEATHER, TIME))
    assert not call_match([WEATHER, TIME, TIME], says(TIME, WEATHER))
    assert not call_match([WEATHER, TIME, TIME], says(TIME, WEATHER, WEATHER))


@pytest.mark.parametrize("nothing", [None, [], "None of these tools fits."])
def test_no_call_expected(nothing: Any) -> None:
    assert call_match(nothing, {"role": "assistant", "content": "None of my tools fits."})
    assert not call_match(nothing, {"role": "assistant", "content": "  "})
    assert not call_match(nothing, says(TIME, content="I call one nonetheless."))


def test_a_call_expected_and_none_made() -> None:
    assert not call_match(TIME, {"role": "assistant", "content": '{"name": "time", "arguments": {}}'})


def test_a_broken_expectation_is_not_scored() -> None:
    with pytest.raises(ValueError, match="not a function call"):
        call_match([{"nome": "time"}], says(TIME))


ARGUMENTS = st.dictionaries(st.sampled_from("xy"), st.integers(0, 1))
CALLS = st.lists(st.fixed_dictionaries({"name": st.sampled_from("ab"), "arguments": ARGUMENTS}), max_size=4)


@given(CALLS, st.randoms(use_true_random=False))
def test_any_shuffle_is_right_and_any_missing_call_wrong(calls: list[dict[str, Any]], random: Any) -> None:
    shuffled = list(calls)
    random.shuffle(shuffled)
    assert call_match(calls, says(*shuffled, content="said"))
    if calls:
        assert not call_match(calls, says(*shuffled[1:]))
