"""The cache of answers: what counts as the same question, what is kept, and a running server that answers out of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.cli.main import main
from cairn.generate.worker import Busy
from cairn.serve import memory
from cairn.serve.answer import Delta
from cairn.serve.cache import AnswerCache, Held, question
from cairn.serve.config import Limits
from cairn.serve.memory import Memory
from cairn.serve.protocol import ChatBody, CompletionBody, read

from .conftest import Served
from .test_api import ASK, HI, RAIN, Joined, both

TOOL = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object", "properties": {"a": {}, "b": {}}}}}
SWAPPED = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}}}
BASE: dict[str, Any] = {"model": "tiny", "messages": HI, "temperature": 0}


def asked(**fields: Any) -> Any:
    return question(read(ChatBody, {**BASE, **fields}))


def test_how_an_answer_is_told_is_no_part_of_the_question() -> None:
    told: list[dict[str, Any]] = [
        {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, {"user": "a"}, {"metadata": {"a": "b"}},
        {"seed": 5}, {"top_p": 0.5}, {"cache": True}, {"stop": []}, {"logprobs": False},
    ]  # fmt: skip
    assert {asked(**fields).key for fields in told} == {asked().key}
    assert asked(max_tokens=5).key == asked(max_completion_tokens=5).key
    assert asked(stop="a").key == asked(stop=["a"]).key


def test_all_that_an_answer_depends_on_is_part_of_it() -> None:
    others: list[dict[str, Any]] = [
        {}, {"messages": ASK}, {"messages": [{"role": "system", "content": "x"}, *HI]}, {"tools": [TOOL]}, {"tools": [SWAPPED]},
        {"tools": [TOOL], "tool_choice": "required"}, {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "parallel_tool_calls": False}, {"attributes": {"humor": 1}}, {"attributes": {"humor": 2}},
        {"max_tokens": 5}, {"stop": "a"}, {"stop": ["a", "b"]}, {"n": 2}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2},
        {"logit_bias": {"5": 1}}, {"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"repetition_penalty": 1.1},
        {"regex": "a"}, {"choice": ["a"]}, {"grammar": 'start: "a"'}, {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string"}}}},
        {"temperature": 0.5, "cache": True}, {"temperature": 0.5, "cache": True, "seed": 1}, {"temperature": 0.5, "cache": True, "seed": 2},
        {"temperature": 0.5, "cache": True, "top_p": 0.5}, {"temperature": 0.5, "cache": True, "top_k": 3},
        {"temperature": 0.5, "cache": True, "min_p": 0.1},
    ]  # fmt: skip
    keys = [asked(**fields).key for fields in others]
    assert len(set(keys)) == len(keys)
    plain = question(read(CompletionBody, {"model": "tiny", "prompt": "Hi", "temperature": 0}))
    assert plain is not None
    assert plain.key not in keys


def test_drawn_answers_are_kept_only_where_that_is_asked_for() -> None:
    assert asked(temperature=0.5) is None
    assert asked(temperature=0.5, seed=1) is None
    assert asked(temperature=0.5, cache=True) is not None
    assert asked(cache=False) is None
    assert question(read(CompletionBody, {"model": "t", "prompt": "a", "temperature": 0, "best_of": 2})) is None


def test_only_plain_questions_have_like_ones() -> None:
    assert asked().context == asked(messages=[{"role": "user", "content": "Hello"}]).context is not None
    assert asked().context != asked(messages=[{"role": "system", "content": "x"}, *HI]).context
    assert asked().context != asked(max_tokens=3).context
    for fields in ({"tools": [TOOL]}, {"regex": "a"}, {"logprobs": True}, {"n": 2}, {"logit_bias": {"5": 1}},
                   {"repetition_penalty": 2.0}, {"temperature": 1.0, "cache": True}):  # fmt: skip
        assert asked(**fields).context is None, fields


def held(text: str, near: str | None = None) -> Held:
    return Held([(0, Delta(text, finish="stop"))], 1, 3, 2, [1, 2], None if near is None else (near, torch.ones(4) / 2))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pgn"), st.integers(0, 9), st.integers(0, 3000)), max_size=60))
def test_the_cache_keeps_within_its_bounds_and_what_was_used_last(steps: list[tuple[str, int, int]]) -> None:
    cache, order, size = AnswerCache(4, 20_000), [], {}
    for kind, number, length in steps:
        key = str(number)
        if kind == "p":
            one = held("x" * length, "c" if number % 2 else None)
            cache.put(key, one)
            order = [k for k in order if k != key] + [key]
            size[key] = one.bytes
            while len(order) > 4 or sum(size[k] for k in order) > 20_000:
                order.pop(0)
        elif kind == "g":
            found = cache.get(key)
            assert (found is not None) == (key in order)
            order = [k for k in order if k != key] + ([key] if key in order else [])
        else:
            assert len(cache.nearest("c", torch.ones(4) / 2, 0.5, 9)) == sum(int(k) % 2 for k in order)
        assert cache.stats() == {"entries": len(order), "bytes": sum(size[k] for k in order)}


def test_the_likest_come_first_and_the_unlike_not_at_all() -> None:
    cache = AnswerCache(9, 10**6)
    for key, angle in (("a", 0.1), ("b", 0.7), ("c", 1.5)):
        vector = torch.tensor([angle]).sin(), torch.tensor([angle]).cos()
        cache.put(key, Held([], 1, 0, 0, [ord(key)], ("c", torch.cat(vector))))
    found = cache.nearest("c", torch.tensor([0.0, 1.0]), 0.5, 5)
    assert [chr(one.ids[0]) for _, one in found] == ["a", "b"]
    assert found[0][0] > found[1][0] > 0.5
    assert cache.nearest("d", torch.tensor([0.0, 1.0]), 0.5, 5) == []


class Absent:
    """A worker that never comes to what it is asked, or that takes nothing any more."""

    def __init__(self, stopping: bool) -> None:
        self.stopping, self.asked = stopping, [Future[bool]() for _ in range(3)]
        self.engine, self.given = SimpleNamespace(context=64), 0

    def aside(self, work: Any) -> Future[bool]:
        if self.stopping:
            raise Busy("the engine is stopping")
        self.given += 1
        return self.asked[self.given - 1]


@pytest.mark.parametrize("stopping", [False, True])
def test_an_engine_without_time_to_confirm_an_answer_computes_it(stopping: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A like question is a help; that there is no time to look at its answer must not refuse the request."""
    monkeypatch.setattr(memory, "SECONDS", 0.01)
    model = SimpleNamespace(parameters=lambda: iter([torch.zeros(1)]))
    made = Memory(SimpleNamespace(engine=SimpleNamespace(model=model)), Limits())  # type: ignore[arg-type]
    made._embedder = lambda text: torch.ones(4) / 2  # type: ignore[assignment]
    question = asked()
    made._cache.put("other", Held([], 1, 3, 2, [1, 2], (question.context, torch.ones(4) / 2)))
    worker, job = Absent(stopping), SimpleNamespace(requests=[SimpleNamespace(ids=[5, 6])], prompt_tokens=2)
    found, vector, tried = made.near(question, job, worker)  # type: ignore[arg-type]
    assert (found, tried) == (None, 1)
    assert vector is not None
    assert stopping or worker.asked[0].cancelled(), "it would still be computed, for nobody"


# -- through a running server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(serve: Callable[..., Served]) -> Served:
    return serve("talker", "--cache", "exact")


def generated(served: Served) -> float:
    return served.metric('cairn_tokens_total{kind="generated"}')


def test_an_equal_question_is_answered_without_the_model(served: Served) -> None:
    client = served.client()
    for fields in (
        {"messages": HI}, {"messages": ASK, "tools": RAIN}, {"messages": HI, "logprobs": True, "top_logprobs": 2}, {"messages": HI, "n": 2},
        {"messages": HI, "stop": ["구!"]}, {"messages": HI, "max_completion_tokens": 2},
    ):  # fmt: skip
        body: Any = {"model": "tiny", "temperature": 0, **fields}
        first = client.chat.completions.create(**body)
        assert not hasattr(first, "cache")
        before = generated(served)
        again = client.chat.completions.create(**body)
        assert again.cache == {"kind": "exact"}
        joined = Joined(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
        assert generated(served) == before
        assert again.choices == first.choices
        for choice in first.choices:
            assert joined.content[choice.index] == (choice.message.content or "")
            assert joined.finish[choice.index] == choice.finish_reason
        assert again.usage.completion_tokens == joined.usage.completion_tokens == first.usage.completion_tokens
        assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens


def test_a_streamed_answer_is_kept_and_a_broken_off_one_is_not(served: Served) -> None:
    client = served.client()
    body: Any = {"model": "tiny", "temperature": 0, "messages": [{"role": "system", "content": "Yell."}, *HI]}
    stream = client.chat.completions.create(**body, stream=True)
    next(iter(stream))
    stream.close()
    whole = client.chat.completions.create(**body)
    if hasattr(whole, "cache"):  # it was complete before it was closed: then it must be the whole answer
        assert whole.choices[0].message.content == "HELLO"
    body["max_completion_tokens"] = 40
    joined = Joined(client.chat.completions.create(**body, stream=True))
    again = client.chat.completions.create(**body)
    assert again.cache == {"kind": "exact"}  # type: ignore[attr-defined]
    assert again.choices[0].message.content == joined.content[0] == "HELLO"


def test_the_caller_decides(served: Served) -> None:
    client = served.client()
    drawn: Any = {"model": "tiny", "messages": HI, "temperature": 1.0}
    for extra, want in (({}, False), ({}, False), ({"cache": True}, False), ({"cache": True}, True), ({}, False)):
        assert hasattr(client.chat.completions.create(**drawn, extra_body=extra), "cache") is want
    seeded = [client.chat.completions.create(**drawn, seed=s, extra_body={"cache": True}) for s in (1, 1, 2, 2)]
    assert [hasattr(one, "cache") for one in seeded] == [False, True, False, True]
    greedy: Any = {"model": "tiny", "messages": HI, "temperature": 0, "max_completion_tokens": 30}
    for extra, want in (({"cache": False}, False), ({}, False), ({}, True), ({"cache": False}, False)):
        assert hasattr(client.chat.completions.create(**greedy, extra_body=extra), "cache") is want


def test_plain_completions_are_kept_too(served: Served) -> None:
    client = served.client()
    asked: Any = {"model": "tiny", "prompt": ["Hi", "Rain"], "max_tokens": 4, "temperature": 0, "echo": True}
    first, again = client.completions.create(**asked), client.completions.create(**asked)
    assert again.cache == {"kind": "exact"}  # type: ignore[attr-defined]
    assert again.choices == first.choices
    assert again.usage.prompt_tokens == first.usage.prompt_tokens  # type: ignore[union-attr]


def test_what_was_found_is_counted(serve: Callable[..., Served], served: Served) -> None:
    fresh = serve("talker", "--cache", "exact", "--set", "cache_entries=1")
    client = fresh.client()
    for messages in (HI, HI, HI, ASK, HI):
        client.chat.completions.create(model="tiny", messages=messages, temperature=0)  # type: ignore[arg-type]
    assert fresh.metric('cairn_response_cache_total{result="exact"}') == 2
    assert fresh.metric('cairn_response_cache_total{result="miss"}') == 3
    assert fresh.metric("cairn_response_cache_hit_ratio") == pytest.approx(0.4)
    assert fresh.metric("cairn_response_cache_entries") == 1
    assert fresh.metric("cairn_response_cache_bytes") > 0
    assert fresh.metric('cairn_answers_total{reason="cached"}') == 2


@pytest.mark.parametrize("words", [(), ("--weights", "int8", "--drafts", "lookup")])
def test_an_answer_to_a_like_question_stands_only_where_the_model_agrees(serve: Callable[..., Served], words: tuple[str, ...]) -> None:
    """Whatever counts as like, here everything: the answers are those of a server without a cache."""
    near, served = serve("talker", "--cache", "near", "--set", "cache_likeness=0.0001", *words), serve("talker", *words)
    texts = ["Hi", "Who?", "Hi!", "Rain?", "hi", "Hi?", "Hi ", "H i", "Who", "HI", "Hi Hi"]
    kinds = []
    for text in texts:
        asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_completion_tokens": 30}
        one = near.client().chat.completions.create(**asked)
        want = served.client().chat.completions.create(**asked, extra_body={"cache": False})
        assert one.choices == want.choices, text
        assert one.usage.prompt_tokens == want.usage.prompt_tokens  # type: ignore[union-attr]
        kinds.append(getattr(one, "cache", {"kind": "computed"})["kind"])
    assert kinds[0] == "computed"
    assert "near" in kinds, "no like question was found: nothing was tested"
    assert near.metric('cairn_response_cache_total{result="near"}') == kinds.count("near")
    assert near.metric('cairn_response_cache_total{result="refused"}') > 0, "no answer was refused: nothing was tested"
    both(near, messages=HI)


def test_another_model_may_say_what_is_alike(serve: Callable[..., Served], checkpoints: Callable[[str], Any]) -> None:
    near = serve("talker", "--cache", "near", "--cache-model", str(checkpoints("neox")), "--set", "cache_likeness=0.0001")
    both(near, messages=HI)
    assert near.metric("cairn_response_cache_entries") == 1


def test_mistakes(
    serve: Callable[..., Served], checkpoints: Callable[[str], Any], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:  # fmt: skip
    folder = str(checkpoints("talker"))
    for words, told in (
        (["--cache", "nera"], "near"),
        (["--cache-model", folder], "--cache near"),
        (["--cache", "near", "--cache-model", str(tmp_path)], "tokenizer"),
        (["--cache", "exact", "--set", "cache_entries=0"], "cache_entries"),
    ):
        assert main(["serve", folder, "--port", "0", *words]) == 2, words
        assert told in capsys.readouterr().err
    without = serve("karakuri")
    with pytest.raises(openai.BadRequestError) as refused:
        without.client().chat.completions.create(model="tiny", messages=HI, extra_body={"cache": True})  # type: ignore[arg-type]
    assert refused.value.param == "cache"
