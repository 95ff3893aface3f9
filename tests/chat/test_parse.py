"""Reading what a model generated, and reading back what is no clean rendering."""

from __future__ import annotations

from typing import Any

import pytest

from cairn.chat.format import load_format
from cairn.chat.parse import parse, parse_answer
from cairn.chat.render import Renderer
from cairn.errors import UserError
from cairn.tokenizer.train import byte_tokenizer

K2 = load_format("k2")
TOKENIZER = byte_tokenizer(K2)


def answer(text: str, *, stop: bool = True) -> dict[str, Any]:
    ids = TOKENIZER.encode(text)
    return parse_answer(K2, TOKENIZER, [*ids, TOKENIZER.token_id("<|endoftext|>"), *TOKENIZER.encode("junk")] if stop else ids)


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"arguments": {"city": "Oslo"}, "name": "weather"}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        '<tool_call>\n  [{"name": "weather", "arguments": {"city": "Oslo"}}]\n</tool_call>',
        '<tool_call>{"name":"weather","arguments":{"city":"Oslo"}}</tool_call>\n',
        '<tool_call>\n{\n  "name": "weather",\n  "arguments": {"city": "Oslo"}\n}',
        '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}\n</tool_call>',
        '<tool_call>\n{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}\n</tool_call>',
    ],
)
def test_calls_in_every_spelling(text: str, stop: bool) -> None:
    assert answer(text, stop=stop) == {"role": "assistant", "content": "", "tool_calls": [call("weather", {"city": "Oslo"})]}


def test_several_calls_and_text_around_them() -> None:
    one, two = '{"name": "a", "arguments": {}}', '{"arguments": {"x": "</tool_call>"}, "name": "b"}'
    both = [call("a", {}), call("b", {"x": "</tool_call>"})]
    assert answer(f"Now.\n<tool_call>\n[{one}, {two}]\n</tool_call>") == {"role": "assistant", "content": "Now.", "tool_calls": both}
    assert answer(f"<tool_call>\n{one}\n</tool_call>\n<tool_call>\n{two}\n</tool_call>")["tool_calls"] == both
    assert answer(f"Before\n<tool_call>{two}</tool_call>after") == {"role": "assistant", "content": "Before\nafter", "tool_calls": both[1:]}


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\n{}\n</tool_call>",
        "<tool_call>\n[]\n</tool_call>",
        '<tool_call>\n{"name": "a"}\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": []}\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": {"x": NaN}}\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": {}} and more\n</tool_call>',
        '<tool_call>\n[{"name": "a", "arguments": {}}, {"name": ""}]\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": {"x": 1}\n</tool_call>',
        "<tool_call>\n" + "[" * 100_000,
        "say </tool_call> twice",
        "",
    ],
)
def test_what_is_no_proper_call_stays_text(text: str) -> None:
    assert answer(text) == {"role": "assistant", "content": text}


def test_special_tokens_in_an_answer() -> None:
    ids = [*TOKENIZER.encode("a"), TOKENIZER.token_id("<|beginofsystem|>"), *TOKENIZER.encode("b")]
    # One that is no stop token stays visible; the next user's token ends the answer.
    assert parse_answer(K2, TOKENIZER, ids)["content"] == "a<|beginofsystem|>b"
    assert (
        parse_answer(K2, TOKENIZER, [*ids, TOKENIZER.token_id("<|beginofuser|>"), *TOKENIZER.encode("c")])["content"]
        == "a<|beginofsystem|>b"
    )


def test_the_space_before_a_stop_token_is_not_content() -> None:
    format = load_format("llama2")
    tokenizer = byte_tokenizer(format)
    assert parse_answer(format, tokenizer, [*tokenizer.encode("yes "), tokenizer.token_id("</s>")])["content"] == "yes"
    assert parse_answer(format, tokenizer, tokenizer.encode("yes"))["content"] == "yes"


def test_a_prompt_reads_as_the_conversation_before_the_answer() -> None:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
    for name in ("k2", "crystal", "llama2", "alpaca", "komt", "zephyr", "chatml"):
        format = load_format(name)
        renderer = Renderer(format, byte_tokenizer(format))
        for prompt in (True, False):
            ids = renderer.render(messages, add_generation_prompt=prompt).ids
            assert parse(renderer, renderer.tokenizer, ids) == {"messages": messages}


def test_attributes_that_differ_stay_with_their_turns() -> None:
    format = load_format("karakuri")
    renderer = Renderer(format, byte_tokenizer(format))
    messages = [
        {"role": "user", "content": "a", "attributes": {"humor": 1}},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    found = parse(renderer, renderer.tokenizer, renderer.render(messages).ids)
    defaults = {name: a.default for name, a in (format.attributes or {}).items()}
    assert [m.get("attributes") for m in found["messages"]] == [{**defaults, "humor": 1}, None, defaults, None]
    assert "attributes" not in found


def test_tools_of_an_unusual_shape_come_back() -> None:
    renderer = Renderer(K2, TOKENIZER)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    strict = {"type": "function", "function": {"name": "f", "parameters": {}}, "strict": True}
    assert parse(renderer, TOKENIZER, renderer.render(messages, tools=[strict]).ids)["tools"] == [strict]
    bare = {"name": "f", "parameters": {}}
    assert parse(renderer, TOKENIZER, renderer.render(messages, tools=[bare]).ids)["tools"] == [{"type": "function", "function": bare}]


def test_ids_that_are_no_conversation_are_refused() -> None:
    with pytest.raises(UserError, match="not a conversation in the format 'k2'") as error:
        parse(K2, TOKENIZER, TOKENIZER.encode("just text"))
    assert "just text" in error.value.where
