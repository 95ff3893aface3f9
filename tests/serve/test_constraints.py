"""Answers held to a form, through the official client against a running server: whole and streamed, and always complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest

from .conftest import Served
from .test_api import both

ASK = [{"role": "user", "content": "Rain?"}]
PLACE = {"type": "object", "properties": {"at": {"enum": ["Oslo", "Bergen"]}, "days": {"type": "integer"}}, "required": ["at"]}
TOOLS = [
    {"type": "function", "function": {"name": "rain", "description": "Rain.", "parameters": PLACE, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
]
DRAWN = {"messages": ASK, "temperature": 1.0, "seed": 3, "n": 3, "max_completion_tokens": 60}


@pytest.fixture(scope="module")
def served(serve: Callable[..., Served]) -> Served:
    """A model that knows how a call reads, and not what it means."""
    return serve("talker")


@pytest.fixture(scope="module")
def babbler(serve: Callable[..., Served]) -> Served:
    """A model of random bytes: only the constraint makes its answers what they are."""
    return serve("endless")


@pytest.mark.parametrize("name", ["served", "babbler"])
def test_a_json_schema(request: pytest.FixtureRequest, name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a", "b"]}
    form = {"type": "json_schema", "json_schema": {"name": "pair", "schema": {**schema, "additionalProperties": False}, "strict": True}}
    whole, _ = both(request.getfixturevalue(name), **DRAWN, response_format=form)
    for choice in whole.choices:
        value = json.loads(choice.message.content)
        assert set(value) == {"a", "b"}
        assert isinstance(value["a"], int)
        assert choice.finish_reason == "stop"


def test_any_json_object(babbler: Served) -> None:
    whole, _ = both(babbler, **DRAWN, response_format={"type": "json_object"})
    assert all(isinstance(json.loads(choice.message.content), dict) for choice in whole.choices)
    plain, _ = both(babbler, **DRAWN, response_format={"type": "text"})
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(plain.choices[0].message.content)


def test_an_expression_a_choice_and_a_grammar(babbler: Served) -> None:
    whole, _ = both(babbler, **DRAWN, extra_body={"regex": "[0-9]{3}-[a-f]+"}, logprobs=True)
    assert all(re.fullmatch("[0-9]{3}-[a-f]+", choice.message.content) for choice in whole.choices)
    whole, _ = both(babbler, **DRAWN, extra_body={"choice": ["red", "blue"]})
    assert {choice.message.content for choice in whole.choices} <= {"red", "blue"}
    whole, _ = both(babbler, **DRAWN, extra_body={"grammar": 'start: "a" start "b" | "c"'})
    assert all(re.fullmatch("a*cb*", choice.message.content) for choice in whole.choices)
    plain = babbler.client().completions.create(model="tiny", prompt="x", max_tokens=9, extra_body={"choice": ["red", "blue"]})
    assert plain.choices[0].text in {"red", "blue"}


def calls_of(choice: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]


def check(calls: list[tuple[str, Any]]) -> None:
    for name, arguments in calls:
        assert name in {"rain", "now"}
        if name == "rain":
            assert arguments["at"] in {"Oslo", "Bergen"}
            assert isinstance(arguments.get("days", 0), int)
        else:
            assert arguments == {}


@pytest.mark.parametrize("name", ["served", "babbler"])
def test_a_call_that_must_be_made(request: pytest.FixtureRequest, name: str) -> None:
    whole, _ = both(request.getfixturevalue(name), **{**DRAWN, "max_completion_tokens": 300}, tools=TOOLS, tool_choice="required")
    for choice in whole.choices:
        assert choice.finish_reason == "tool_calls"
        assert calls_of(choice)
        check(calls_of(choice))


def test_the_call_that_is_named(babbler: Served) -> None:
    named: Any = {"type": "function", "function": {"name": "rain"}}
    asked = {**DRAWN, "max_completion_tokens": 300, "tools": TOOLS, "tool_choice": named}
    whole, _ = both(babbler, **asked, parallel_tool_calls=False)
    for choice in whole.choices:
        assert [name for name, _ in calls_of(choice)] == ["rain"]
        check(calls_of(choice))
        assert choice.message.tool_calls[0].id


def test_parallel_calls(served: Served) -> None:
    """Several calls in one answer each have their own id, whole and streamed."""
    one = '{"arguments": {"at": "Oslo"}, "name": "rain"}'
    bias = _bias_for_a_list(served)
    whole, joined = both(served, messages=ASK, tools=TOOLS, tool_choice="required", max_completion_tokens=60, logit_bias=bias)
    calls = whole.choices[0].message.tool_calls
    assert len(calls) >= 2, one
    check(calls_of(whole.choices[0]))
    assert len({call.id for call in calls}) == len(calls)
    assert len({call["id"] for call in joined.calls[0]}) == len(calls)
    single, _ = both(
        served, messages=ASK, tools=TOOLS, tool_choice="required", max_completion_tokens=60, logit_bias=bias, parallel_tool_calls=False
    )  # fmt: skip
    assert len(single.choices[0].message.tool_calls) == 1


def _bias_for_a_list(served: Served) -> dict[str, float]:
    """A bias to tokens that begin with `[`: where a list of calls may stand, it does."""
    client = served.client()
    told = client.completions.create(model="tiny", prompt="x", max_tokens=1, temperature=0, logprobs=0, extra_body={"choice": ["["]})
    assert told.choices[0].text == "["
    for token in range(1200):
        try:
            text = client.completions.create(model="tiny", prompt=[token], max_tokens=1, echo=True).choices[0].text
        except openai.BadRequestError:
            break
        if text.startswith("["):
            return {str(token): 100.0}
    raise AssertionError("no token begins a list")


def test_as_the_model_likes(served: Served) -> None:
    whole, _ = both(served, messages=ASK, tools=TOOLS, tool_choice="auto")
    assert calls_of(whole.choices[0]) == [("rain", {"at": "Oslo"})]
    whole, _ = both(served, messages=[{"role": "user", "content": "Hi"}], tools=TOOLS)
    choice = whole.choices[0]
    assert choice.message.content or choice.message.tool_calls
    check(calls_of(choice))


def test_an_answer_that_has_no_room_is_refused_before_it_begins(babbler: Served) -> None:
    asked = {**DRAWN, "max_completion_tokens": 4}
    for wanted in ({"tools": TOOLS, "tool_choice": "required"}, {"extra_body": {"choice": ["abcdefgh"]}}):
        with pytest.raises(openai.BadRequestError) as told:
            both(babbler, **asked, **wanted)
        assert "needs at least" in told.value.message
        assert told.value.param == "max_completion_tokens"
