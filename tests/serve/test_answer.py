"""Answers read piece by piece come to what the parser reads in the whole text, however the tokens arrive."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.chat.format import JOINER, load_format
from cairn.chat.parse import answer_of_text
from cairn.generate.request import Completion, Logprob, Step
from cairn.serve.answer import Answer, Delta
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import byte_tokenizer

CALL = '<tool_call>\n{"arguments": {"a": 1}, "name": "f"}\n</tool_call>'
PARTS = [
    "a", "é", "친구", "\n", " ", "<", "<tool", "<tool_call", "<tool_call>", "</tool_call>", JOINER, "[INST", "[INST" + JOINER, "[/ATTR",
    CALL, "\n" + CALL, '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</tool_call>', '{"a": 1}', "STOP", "ST",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@cache
def tokenizer(name: str) -> Tokenizer:
    return byte_tokenizer(load_format(name))


def read(answer: Answer, ids: list[int], sizes: list[int], reason: str = "stop", stop_id: int | None = None) -> list[Delta]:
    """Feed ids in steps of these sizes, and the rest one by one."""
    steps, at = [], 0
    for size in [*sizes, *[1] * len(ids)]:
        if at < len(ids):
            steps.append(ids[at : at + size])
            at += size
    steps = steps or [[]]
    completion = Completion(ids, reason, stop_id)  # type: ignore[arg-type]
    deltas = []
    for i, part in enumerate(steps):
        told = [Logprob(token, -0.5, []) for token in part]
        deltas.append(answer.feed(Step(part, told, completion if i + 1 == len(steps) else None)))
        if deltas[-1].finish:
            break
    return deltas


def joined(deltas: list[Delta]) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for d in deltas for c in d.calls]
    text = "".join(delta.text for delta in deltas)
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 9), max_size=6), st.sampled_from(["k2", "karakuri", "chatml"]))
def test_the_pieces_are_the_whole(text: str, sizes: list[int], name: str) -> None:
    format, own = load_format(name), tokenizer(name)
    deltas = read(Answer(own, format, calls=True), own.encode(text), sizes)
    assert joined(deltas) == answer_of_text(format, text)
    assert [bool(delta.finish) for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].finish == ("tool_calls" if deltas[-1].calls else "stop")


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 9), max_size=6))
def test_without_tools_a_call_is_text(text: str, sizes: list[int]) -> None:
    format, own = load_format("k2"), tokenizer("k2")
    deltas = read(Answer(own, format), own.encode(text), sizes)
    assert joined(deltas) == {"role": "assistant", "content": format.unescape(text)}


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 9), max_size=6))
def test_a_stop_string_cuts_text_and_tokens(text: str, sizes: list[int]) -> None:
    own = tokenizer("k2")
    ids = own.encode(text)
    deltas = read(Answer(own, stops=["STOP"]), ids, sizes, reason="length")
    cut, found, _ = text.partition("STOP")
    assert joined(deltas)["content"] == cut
    assert deltas[-1].finish == ("stop" if found else "length")
    tokens = [token.logprob.id for delta in deltas for token in delta.tokens]
    assert tokens == own.encode(cut), "log-probabilities of other tokens than the answer's"


def test_text_comes_as_soon_as_it_is_certain() -> None:
    own = tokenizer("k2")
    answer = Answer(own, load_format("k2"), calls=True, stops=["end"])
    told = [answer.feed(Step([token], [])).text for token in own.encode("ab <b> e\n<t")]
    assert told == ["a", "b", " ", "", "<b", ">", " ", "", "e", "", ""]


def test_the_stop_token_is_counted_and_not_read() -> None:
    own, format = tokenizer("k2"), load_format("k2")
    stop = own.token_id("<|endoftext|>")
    answer = Answer(own, format)
    (delta,) = read(answer, [*own.encode("hi"), stop], [3], stop_id=stop)
    assert (delta.text, delta.finish, answer.ids) == ("hi", "stop", 3)


def test_only_the_first_calls_are_given_where_few_may_be() -> None:
    own, format = tokenizer("k2"), load_format("k2")
    text = '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</tool_call>'
    deltas = read(Answer(own, format, calls=True, most_calls=1), own.encode(text), [])
    assert [call.name for delta in deltas for call in delta.calls] == ["f"]


@pytest.mark.parametrize("text", ["a\n<tool_call>{broken", "a<tool_call>{}</tool_call>b", "\n<tool_call>"])
def test_what_is_no_call_stays_text(text: str) -> None:
    own, format = tokenizer("k2"), load_format("k2")
    assert joined(read(Answer(own, format, calls=True), own.encode(text), []))["content"] == text
