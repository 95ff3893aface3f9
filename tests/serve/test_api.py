"""Every feature of the API through the official client against a running server: whole and streamed, with equal content."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest

from cairn.cli.main import main

from .conftest import Served

HI = [{"role": "user", "content": "Hi"}]
RAIN = [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}]
ASK = [{"role": "user", "content": "Rain?"}]


@pytest.fixture(scope="module")
def talker(serve: Callable[..., Served]) -> Served:
    return serve("talker")


@pytest.fixture(scope="module")
def babbler(serve: Callable[..., Served]) -> Served:
    """Random bytes, drawn."""
    return serve("endless")


class Joined:
    """A streamed answer put together as a client would."""

    def __init__(self, stream: Any) -> None:
        self.content: dict[int, str] = {}
        self.calls: dict[int, list[dict[str, Any]]] = {}
        self.tokens: dict[int, list[Any]] = {}
        self.finish: dict[int, str] = {}
        self.usage: Any = None
        self.chunks = 0
        for chunk in stream:
            self.chunks += 1
            self.usage = chunk.usage or self.usage
            for choice in chunk.choices:
                self._take(choice)

    def _take(self, choice: Any) -> None:
        i = choice.index
        self.content[i] = self.content.get(i, "") + (choice.delta.content or "")
        for part in choice.delta.tool_calls or ():
            calls = self.calls.setdefault(i, [])
            if part.index == len(calls):
                calls.append({"id": part.id, "name": part.function.name, "arguments": ""})
            calls[part.index]["arguments"] += part.function.arguments or ""
        if choice.logprobs:
            self.tokens.setdefault(i, []).extend(choice.logprobs.content)
        if choice.finish_reason:
            assert i not in self.finish, "an answer ended twice"
            self.finish[i] = choice.finish_reason


def both(served: Served, **asked: Any) -> tuple[Any, Joined]:
    """The whole answer, and the same streamed; fails where they differ."""
    client = served.client()
    asked = {"model": "tiny", "temperature": 0, **asked}
    whole = client.chat.completions.create(**asked)
    joined = Joined(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        i = choice.index
        assert joined.content[i] == (choice.message.content or "")
        assert joined.finish[i] == choice.finish_reason
        calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
        assert [(c["name"], c["arguments"]) for c in joined.calls.get(i, [])] == calls
        same_tokens(joined.tokens.get(i, []), choice.logprobs.content if choice.logprobs else [])
    assert len(joined.finish) == len(whole.choices)
    assert joined.usage.completion_tokens == whole.usage.completion_tokens
    assert joined.usage.prompt_tokens == whole.usage.prompt_tokens
    return whole, joined


def same_tokens(ours: list[Any], theirs: list[Any]) -> None:
    """The same tokens, as likely up to the last bits, which hang on what the engine had kept of the prompt."""
    assert [t.token for t in ours] == [t.token for t in theirs]
    assert [t.logprob for t in ours] == pytest.approx([t.logprob for t in theirs], abs=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        assert [t.logprob for t in one.top_logprobs] == pytest.approx([t.logprob for t in other.top_logprobs], abs=1e-4)


def test_an_answer_in_whole_characters(talker: Served) -> None:
    whole, joined = both(talker, messages=HI)
    assert whole.choices[0].message.content == "Hello, 친구!"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == "stop"
    assert joined.chunks > 3
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.prompt_tokens_details.cached_tokens >= 0


def test_system_developer_and_text_parts_are_read(talker: Served) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]
    for role in ("system", "developer"):
        whole, _ = both(talker, messages=[{"role": role, "content": "Yell."}, *parts])
        assert whole.choices[0].message.content == "HELLO"


def test_an_answer_can_be_sent_back_as_it_came(talker: Served) -> None:
    first, _ = both(talker, messages=HI)
    whole, _ = both(talker, messages=[*HI, first.choices[0].message, {"role": "user", "content": "Who?"}])
    assert whole.choices[0].message.content == "A cairn."


def test_a_call_and_the_answer_to_its_result(talker: Served) -> None:
    whole, _ = both(talker, messages=ASK, tools=RAIN)
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert json.loads(message.tool_calls[0].function.arguments) == {"at": "Oslo"}
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"mm": 3}'}
    whole, _ = both(talker, messages=[*ASK, message, result], tools=RAIN)
    assert whole.choices[0].message.content == "- 3 mm"


def test_no_tool_is_called_where_none_may(talker: Served) -> None:
    whole, _ = both(talker, messages=ASK, tools=RAIN, tool_choice="none", max_completion_tokens=30)
    assert whole.choices[0].message.tool_calls is None


def test_a_stop_string_is_cut_out_with_its_log_probabilities(talker: Served) -> None:
    whole, _ = both(talker, messages=HI, stop=["구!"], logprobs=True)
    assert whole.choices[0].message.content == "Hello, 친"
    assert whole.choices[0].finish_reason == "stop"
    assert [t.token for t in whole.choices[0].logprobs.content] == ["Hello", ",", " 친구"]
    assert both(talker, messages=HI, stop="!")[0].choices[0].message.content == "Hello, 친구"
    assert both(talker, messages=HI, stop="!?")[0].choices[0].message.content == "Hello, 친구!"


def test_a_length_ends_an_answer(talker: Served) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        whole, _ = both(talker, messages=HI, **{name: 2})
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Hello,", "length")
        assert whole.usage.completion_tokens == 2


def test_log_probabilities_of_chosen_and_likeliest_tokens(talker: Served) -> None:
    whole, _ = both(talker, messages=HI, logprobs=True, top_logprobs=3)
    told = whole.choices[0].logprobs.content
    assert b"".join(bytes(t.bytes) for t in told).decode() == "Hello, 친구!"
    for token in told:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
        assert -1 < token.logprob <= 0
    plain, _ = both(talker, messages=HI, logprobs=True)
    assert [t.top_logprobs for t in plain.choices[0].logprobs.content] == [[] for _ in told]
    assert both(talker, messages=HI)[0].choices[0].logprobs is None


def test_seeds_and_several_answers(babbler: Served) -> None:
    asked = {"messages": HI, "temperature": 1.0, "n": 3, "seed": 5, "max_completion_tokens": 12}
    first, _ = both(babbler, **asked)
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    again, _ = both(babbler, **asked)
    assert [choice.message.content for choice in again.choices] == texts
    other, _ = both(babbler, **{**asked, "seed": 6})
    assert [choice.message.content for choice in other.choices] != texts
    assert first.usage.completion_tokens == 36
    client = babbler.client()
    unseeded = {
        client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=12).choices[0].message.content for _ in range(2)
    }  # fmt: skip
    assert len(unseeded) == 2


def test_a_bias_forces_and_forbids_a_token(talker: Served, babbler: Served) -> None:
    token = 65
    whole, _ = both(babbler, messages=HI, logit_bias={str(token): 100}, max_completion_tokens=5)
    letter = whole.choices[0].message.content
    assert len(set(letter)) == 1
    assert len(letter) == 5
    banned, _ = both(babbler, messages=HI, logit_bias={str(token): -100}, max_completion_tokens=5)
    assert letter[0] not in banned.choices[0].message.content


def test_plain_completions(talker: Served, babbler: Served) -> None:
    client = babbler.client()
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["ab", "cd"], "max_tokens": 6, "n": 2, "seed": 1, "logprobs": 2}
    whole = client.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    parts: dict[int, list[Any]] = {}
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            parts.setdefault(choice.index, []).append(choice)
    for choice in whole.choices:
        streamed = parts[choice.index]
        assert "".join(part.text for part in streamed) == choice.text
        assert [part.finish_reason for part in streamed if part.finish_reason] == [choice.finish_reason] == ["length"]
        told = [logprob for part in streamed for logprob in part.logprobs.token_logprobs]
        assert told == pytest.approx(choice.logprobs.token_logprobs, abs=1e-4)
        assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == 6
        assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)
    echoed = client.completions.create(model="tiny", prompt="ab", max_tokens=3, echo=True, temperature=0)
    plain = client.completions.create(model="tiny", prompt="ab", max_tokens=3, temperature=0)
    assert echoed.choices[0].text == "ab" + plain.choices[0].text
    ids = client.completions.create(model="tiny", prompt=[97, 98], max_tokens=3, temperature=0)
    assert ids.usage.prompt_tokens == 2
    stopped = client.completions.create(model="tiny", prompt="ab", max_tokens=50, temperature=0, stop=plain.choices[0].text[1])
    assert stopped.choices[0].text == plain.choices[0].text[0]


def test_the_best_of_several_is_the_likeliest(babbler: Served) -> None:
    client = babbler.client()
    asked: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 6, "seed": 1, "logprobs": 0}
    drawn = client.completions.create(**asked, n=6)
    best = client.completions.create(**asked, n=2, best_of=6)
    ranked = sorted(drawn.choices, key=lambda c: -sum(c.logprobs.token_logprobs))
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == 36


def test_attributes_reach_the_prompt(serve: Callable[..., Served]) -> None:
    served = serve("karakuri")
    card = served.client().models.retrieve("tiny")
    assert card.attributes["humor"] == {"default": 0, "minimum": 0, "maximum": 4}  # type: ignore[attr-defined]
    asked = {"messages": HI, "max_completion_tokens": 8}
    plain, _ = both(served, **asked)
    default, _ = both(served, **asked, extra_body={"attributes": {"humor": 0}})
    assert default.choices[0].message.content == plain.choices[0].message.content
    funny, _ = both(served, **asked, extra_body={"attributes": {"humor": 4}}, logprobs=True)
    flat, _ = both(served, **asked, logprobs=True)
    told = [[t.logprob for t in one.choices[0].logprobs.content] for one in (funny, flat)]
    assert told[0] != pytest.approx(told[1], abs=1e-4)
    for wrong in ({"humour": 1}, {"humor": 9}, {"humor": "much"}):
        with pytest.raises(openai.BadRequestError) as told:
            both(served, **asked, extra_body={"attributes": wrong})
        assert told.value.param.startswith("attributes.")  # type: ignore[union-attr]


def test_models_health_and_metrics(talker: Served) -> None:
    client = talker.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "cairn"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert talker.get("/health").json() == {"status": "ok"}
    before = talker.metric('cairn_tokens_total{kind="generated"}')
    whole = client.chat.completions.create(model="tiny", messages=HI, temperature=0)  # type: ignore[arg-type]
    assert talker.metric('cairn_tokens_total{kind="generated"}') - before == whole.usage.completion_tokens  # type: ignore[union-attr]
    assert talker.metric("cairn_time_to_first_token_seconds_count") >= 1
    assert talker.metric("cairn_in_flight") == 0
    assert 'path="/v1/chat/completions",status="200"' in talker.get("/metrics").text


def test_every_answer_says_whether_its_company_could_matter(serve: Callable[..., Served]) -> None:
    """The compiled forward is deterministic as it is; a model's own is where that was asked for."""
    for served, want in (
        (serve("talker", "--weights", "int8", "--drafts", "lookup"), True),
        (serve("neox"), False),
        (serve("neox", "--deterministic"), True),
    ):
        client = served.client()
        asked: dict[str, Any] = {"model": "tiny", "messages": HI, "temperature": 0, "max_completion_tokens": 8}
        assert client.chat.completions.create(**asked).deterministic is want
        assert {chunk.deterministic for chunk in client.chat.completions.create(**asked, stream=True)} == {want}
        assert client.completions.create(model="tiny", prompt="a", max_tokens=2).deterministic is want
        assert client.models.retrieve("tiny").deterministic is want


def test_every_answer_names_what_it_was_made_with(talker: Served) -> None:
    client = talker.client()
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "temperature": 0, "max_completion_tokens": 3}
    found = [client.chat.completions.create(**asked), *client.chat.completions.create(**asked, stream=True)]
    found += [client.completions.create(model="tiny", prompt="a", max_tokens=2), client.models.retrieve("tiny")]
    assert len({one.system_fingerprint for one in found}) == 1
    assert re.fullmatch("fp_[0-9a-f]{12}", found[0].system_fingerprint)


def test_rounded_weights_tell_their_price_and_drafts_change_nothing(serve: Callable[..., Served], talker: Served) -> None:
    drafted = serve("talker", "--weights", "int8", "--drafts", "lookup")
    assert "perplexity" in drafted.log.read_text()
    for asked in ({"messages": HI}, {"messages": ASK, "tools": RAIN}):
        whole, plain = (both(served, **asked)[0].choices[0].message for served in (drafted, talker))
        assert whole.content == plain.content
        assert [c.function.arguments for c in whole.tool_calls or ()] == [c.function.arguments for c in plain.tool_calls or ()]
    served = serve("neox")
    assert "slower forward" in served.log.read_text()


def test_weights_that_need_the_compiled_forward_are_refused_without_it(checkpoints: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(checkpoints("neox")), "--port", "0", "--weights", "int8"]) == 2
    assert "int8" in capsys.readouterr().err


async def _many(served: Served, count: int) -> list[str]:
    import asyncio

    client = openai.AsyncOpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0, timeout=240)

    async def one(i: int) -> str:
        text = ""
        asked: Any = {"model": "tiny", "messages": HI, "seed": i % 3, "max_completion_tokens": 10}
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            text += chunk.choices[0].delta.content or ""
        return text

    return list(await asyncio.gather(*(one(i) for i in range(count))))


def test_many_callers_at_once_get_each_their_own_answer(babbler: Served) -> None:
    import asyncio

    texts = asyncio.run(_many(babbler, 24))
    assert len(set(texts)) == 3
    assert all(texts[i] == texts[i % 3] for i in range(24))
