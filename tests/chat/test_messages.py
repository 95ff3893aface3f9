"""What is wrong with a conversation is told with its field and a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from cairn.chat.messages import check_messages, problems
from cairn.errors import UserError

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "yes"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL = {"role": "tool", "content": "{}"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [USER, BOT],
        [SYSTEM, USER, BOT, USER, BOT],
        [USER, CALLING, TOOL, TOOL, BOT],
        [USER, CALLING, USER, BOT],
        [USER, {**BOT, "weight": 0, "name": "x", "tool_calls": None}],
    ],
)
def test_good_conversations(messages: list[dict[str, Any]]) -> None:
    assert list(problems(messages)) == []


@pytest.mark.parametrize(
    ("messages", "field", "what", "remedy"),
    [
        ("hi", "messages", "must be a list of messages, not text", "role"),
        ([], "messages", "no messages", "user message"),
        ([SYSTEM], "messages", "no user message", "user message"),
        ([USER, "yes"], "messages[1]", "a message must be an object, not text", "role"),
        ([{"content": "hi"}], "messages[0].role", "the role is missing", "known"),
        ([{"role": "assitant", "content": "hi"}], "messages[0].role", "unknown role 'assitant'", "'assistant'"),
        ([BOT], "messages[0].role", "'assistant' cannot stand at the start", "user's message in front"),
        ([USER, USER], "messages[1].role", "'user' cannot stand after 'user'", "join"),
        ([USER, BOT, BOT], "messages[2].role", "'assistant' cannot stand after 'assistant'", "join"),
        ([USER, SYSTEM], "messages[1].role", "'system' cannot stand after 'user'", "only at the start"),
        ([USER, BOT, TOOL], "messages[2]", "result without a call", "add the call"),
        ([USER, CALLING, TOOL, USER], "messages[3].role", "'user' cannot stand after 'tool'", "answer"),
        ([USER, {"role": "assistant"}], "messages[1].content", "no content", "give its text"),
        ([USER, {"role": "assistant", "content": " \n"}], "messages[1].content", "the assistant turn is empty", "remove the row"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "messages[1].content", "content must be text, not a list", "join"),
        ([USER, {**BOT, "content": "a\0b"}], "messages[1].content", "NUL byte at character 1", "broken export"),
        ([USER, {**BOT, "content": "ab\ud800"}], "messages[1].content", "lone surrogate (U+D800) at character 2", "encoding"),
        ([USER, {**BOT, "contents": "x"}], "messages[1].contents", "unknown key 'contents'", "'content'"),
        ([USER, {**BOT, "weight": 0.5}], "messages[1].weight", "weight must be 0 or 1", "0 for a turn"),
        ([USER, {**BOT, "weight": True}], "messages[1].weight", "weight must be 0 or 1", "0 for a turn"),
        ([{**USER, "tool_calls": [CALL]}], "messages[0].tool_calls", "only the assistant calls tools", "role"),
        ([USER, {**BOT, "tool_calls": {}}], "messages[1].tool_calls", "must be a list, not an object", "function"),
        ([USER, {**BOT, "tool_calls": [{}]}], "messages[1].tool_calls[0].function", "needs an object", "function"),
        (
            [USER, {**BOT, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
            "messages[1].tool_calls[0].function.arguments",
            "arguments must be an object, not text",
            "turn the JSON text",
        ),
        (
            [USER, {**BOT, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [float("nan")]}}}]}],
            "messages[1].tool_calls[0].function.arguments.a[0]",
            "nan is not a JSON number",
            "null",
        ),
    ],
)
def test_problems_name_field_and_remedy(messages: Any, field: str, what: str, remedy: str) -> None:
    with pytest.raises(UserError) as error:
        check_messages(messages)
    assert error.value.where == field
    assert what in error.value.what
    assert remedy in error.value.remedy


def test_all_problems_are_found_and_the_list_can_have_another_name() -> None:
    messages = [USER, {"role": "assistant", "content": ""}, {"role": "user"}, {**BOT, "weight": 7}]
    assert [p.where for p in problems(messages, field="chosen")] == ["chosen[1].content", "chosen[2].content", "chosen[3].weight"]


def test_generation_is_laxer_than_training() -> None:
    messages = [USER, {"role": "assistant", "content": ""}, {"role": "user", "content": "\0"}]
    check_messages(messages, training=False)
    with pytest.raises(UserError, match="empty"):
        check_messages(messages)
    with pytest.raises(UserError, match="surrogate"):
        check_messages([{**USER, "content": "\udfff"}], training=False)


def test_tools_and_attributes_are_checked() -> None:
    good = {"type": "function", "function": {"name": "f"}}
    assert list(problems([USER], tools=[good, {"name": "bare"}], attributes={"humor": 1})) == []
    found = list(problems([USER], tools=[{"type": "function"}, {**good, "x": {1: 2}}], attributes={"humor": "1"}))
    assert [p.where for p in found] == ["tools[0].function.name", "tools[1].x", "attributes.humor"]
    assert [p.where for p in problems([USER], tools={}, attributes=[])] == ["tools", "attributes"]
    assert [p.where for p in problems([{**USER, "attributes": {"a": None}}, {**BOT, "attributes": {}}])] == [
        "messages[0].attributes.a",
        "messages[1].attributes",
    ]
