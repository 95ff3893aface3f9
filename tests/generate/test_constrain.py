"""Constraints: whatever a model wants and whatever its budget, a finished answer is complete; what cannot be done is told."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cairn.chat.calls import call_layout
from cairn.chat.format import format_names, load_format
from cairn.chat.parse import parse_answer
from cairn.chat.render import Renderer
from cairn.errors import UserError
from cairn.generate import grammar
from cairn.generate.constrain import Constrainer
from cairn.generate.engine import Engine, Request
from cairn.generate.fast import FastRunner
from cairn.generate.many import beam_search
from cairn.generate.runner import Runner
from cairn.generate.sampling import Sampling
from cairn.generate.speculate import PromptLookup, Speculative
from cairn.score.json_match import parse_json
from cairn.tokenizer.load import Tokenizer
from cairn.tokenizer.train import byte_tokenizer

from .constrained import PERSON, answer, anything, text_of, valid, walk

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}}}},
    {"name": "now"},
]


# --- every finished answer is complete

NAMES = st.sampled_from(["a", "b", "name", "날씨", 'quo"te'])
LEAVES = st.one_of(
    st.just({"type": "string"}),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, st.integers(0, 9), st.integers(0, 9)),
    st.just({"type": "number"}),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-99, 99), st.integers(0, 999)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"enum": ["red", "green", "아니오", 12, None]}]),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(NAMES, inner, max_size=4).flatmap(
        lambda properties: st.builds(
            lambda required, closed: {
                "type": "object",
                "properties": properties,
                "required": required,
                **({"additionalProperties": False} if closed else {}),
            },
            st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
            st.booleans(),
        )
    )
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner, st.integers(0, 3), st.integers(0, 3),
    )  # fmt: skip
    return st.one_of(objects, arrays, st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner))


refusals: list[str] = []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(schema=st.recursive(LEAVES, _nested, max_leaves=8), spare=st.integers(0, 60), seed=st.integers(0, 1 << 30))
def test_json_is_valid_in_any_budget(constrainer: Constrainer, tokenizer: Tokenizer, schema: Any, spare: int, seed: int) -> None:
    try:
        compiled = constrainer.compile(grammar.json_schema(schema))
    except UserError as error:  # llguidance does not merge every pair of alternatives
        refusals.append(error.what)
        return
    text = answer(constrainer, tokenizer, compiled, compiled.shortest + spare, seed)
    assert valid(schema, json.loads(text)), text


def test_hardly_any_drawn_schema_was_refused() -> None:
    """Runs behind the test above: one that refuses everything would pass it."""
    assert len(refusals) < 12, refusals


def _opens(tokenizer: Tokenizer) -> Any:
    """A model that begins whatever it can begin and ends nothing."""

    def choose(ids: list[int], rng: random.Random) -> int:
        return max(ids, key=lambda id: (sum(tokenizer.decode([id]).count(c) for c in "[{,"), -id))

    return choose


@pytest.mark.parametrize("budget", [12, 13, 20, 40, 150])
@pytest.mark.parametrize("wanted", ["opens", "9", "[", "{", '"', "a", "\\", " ", "-", "E"])
def test_a_model_that_never_ends_is_ended(constrainer: Constrainer, tokenizer: Tokenizer, wanted: str, budget: int) -> None:
    compiled = constrainer.compile(grammar.json_schema(PERSON))
    if wanted == "opens":
        choose = _opens(tokenizer)
    else:
        liked = [id for id in range(tokenizer.vocab_size) if wanted in tokenizer.decode([id])]

        def choose(ids: list[int], rng: random.Random) -> int:
            return next((id for id in liked if id in set(ids)), ids[0])

    value = parse_json(answer(constrainer, tokenizer, compiled, budget, 0, choose))
    assert valid(PERSON, value)
    json.dumps(value, allow_nan=False)


@pytest.mark.parametrize("wanted", ["9", "[", '{"":'])
def test_numbers_stay_finite_and_nesting_readable(constrainer: Constrainer, tokenizer: Tokenizer, wanted: str) -> None:
    """Python reads 1e999 as infinity, no integer of 5,000 digits, and no 2,000 brackets."""
    compiled = constrainer.compile(grammar.json_schema({}))
    script = {"9": ["9e9", "9"], "[": ["["], '{"":': ["{", '"', '"', ":"]}[wanted]
    turns = iter(tokenizer.encode("".join(script)) * 9000)

    def choose(ids: list[int], rng: random.Random) -> int:
        want = next(turns)
        return want if want in ids else rng.choice(ids)

    text = answer(constrainer, tokenizer, compiled, 3000, 0, choose)
    json.dumps(json.loads(text), allow_nan=False)


def test_a_costly_choice_that_does_not_fit_is_not_begun(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    """An optional member with 60 required ones inside takes hundreds of tokens: it may be begun only where they are there."""
    big = {"type": "object", "properties": {f"field {i}": {"type": "integer"} for i in range(60)}, "additionalProperties": False}
    schema = {"type": "object", "properties": {"big": {**big, "required": list(big["properties"])}}, "additionalProperties": False}
    compiled = constrainer.compile(grammar.json_schema(schema))

    def choose(ids: list[int], rng: random.Random) -> int:
        return next((id for id in ids if tokenizer.decode([id]).startswith(("{", '"', "b"))), ids[0])

    assert compiled.shortest <= 2
    assert answer(constrainer, tokenizer, compiled, 100, 0, choose) == "{}"
    whole = json.loads(answer(constrainer, tokenizer, compiled, 2000, 0, choose))
    assert len(whole["big"]) == 60


@pytest.mark.parametrize(
    "pattern",
    ["[a-z]*END", "([0-9]{3}-){2}[0-9]{4}", "a|bb|c", ".*하늘", "(ab)*", r"[a-z.]+@[a-z]+\.[a-z]{2,6}", "(x+x+)+y", "[a-z]{50}", "^yes$"],
)
def test_expressions_match_as_a_whole(constrainer: Constrainer, tokenizer: Tokenizer, pattern: str) -> None:
    compiled = constrainer.compile(grammar.regex(pattern))
    for seed in range(30):
        text = answer(constrainer, tokenizer, compiled, compiled.shortest + seed, seed)
        assert re.fullmatch(pattern, text), text


def test_choices_and_grammars(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    choices = ["yes", "yes, of course", "no", "아니오", 'say "no"']
    compiled = constrainer.compile(grammar.choice(choices))
    got = {answer(constrainer, tokenizer, compiled, 20, seed) for seed in range(80)}
    assert got <= set(choices)
    assert len(got) > 2
    sums = constrainer.compile(grammar.grammar('start: term ("+" term)*\nterm: /[0-9]/ | "(" start ")"'))
    for seed in range(40):
        text = answer(constrainer, tokenizer, sums, sums.shortest + seed, seed)
        assert re.fullmatch(r"[0-9+()]+", text)
        eval(text)  # noqa: S307  # only digits, plus and brackets


def test_white_space_is_bounded(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    compiled = constrainer.compile(grammar.json_schema(PERSON))

    def blanks(ids: list[int], rng: random.Random) -> int:
        return next((id for id in ids if not tokenizer.decode([id]).strip(" \n\t")), rng.choice(ids))

    for seed in range(5):
        text = answer(constrainer, tokenizer, compiled, 60, seed, blanks)
        outside = re.sub(r'"(\\.|[^"\\])*"', '""', text)
        assert not re.search(r"\s\s|\n|\t", outside), text


def test_an_answer_that_nothing_can_follow_ends_by_itself(constrainer: Constrainer) -> None:
    ids, finished = walk(constrainer.compile(grammar.choice(["yes"])), 50)
    assert finished
    assert len(ids) < 5
    ids, finished = walk(constrainer.compile(grammar.regex("[ab]{1,9}")), 50, 3)
    assert finished


def test_without_a_stop_token_answers_end_too(tokenizer: Tokenizer) -> None:
    made = Constrainer(tokenizer, [])
    try:
        compiled = made.compile(grammar.json_schema(PERSON))
        for seed in range(5):
            ids, finished = walk(compiled, 60, seed)
            assert finished
            json.loads(tokenizer.decode(ids))
    finally:
        made.close()


def test_a_budget_without_room_is_told(constrainer: Constrainer) -> None:
    compiled = constrainer.compile(grammar.json_schema(PERSON))
    with pytest.raises(UserError, match=f"at least {compiled.shortest} tokens"):
        compiled.check(compiled.shortest - 1)
    compiled.check(compiled.shortest)
    with pytest.raises(UserError, match="needs at least"):
        compiled().allowed(compiled.shortest - 1)


def test_where_the_library_gives_up_the_known_ending_is_taken(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    matcher = constrainer.compile(grammar.json_schema(PERSON))()
    ids = tokenizer.encode('{"name":"Os')
    for id in ids:
        assert matcher.accept(id, 50)
    matcher._matcher.consume_token(tokenizer.token_id("<|beginofuser|>"))
    assert matcher._matcher.is_error()
    while not matcher.finished:
        (id,) = matcher.allowed(50 - len(ids)).nonzero()[:, 0].tolist()
        assert matcher.accept(id, 50 - len(ids))
        ids.append(id)
    assert valid(PERSON, json.loads(tokenizer.decode(ids)))


def test_special_tokens_are_never_text(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    mask = constrainer.compile(grammar.regex("(?s:.*)"))().allowed(9)
    special = set(tokenizer.special.values()) - {tokenizer.eos_id}
    assert special
    assert not mask[sorted(special)].any()
    assert mask[tokenizer.eos_id]


# --- function calls


@pytest.mark.parametrize("name", format_names())
@pytest.mark.parametrize("choice", ["required", "light", "auto", "none"])
def test_calls_of_every_format_parse(name: str, choice: str) -> None:
    format = load_format(name)
    tokenizer = byte_tokenizer(format)
    constrainer = Constrainer(tokenizer, Renderer(format, tokenizer).stop_ids)
    compiled = constrainer.compile(grammar.calls(call_layout(format), TOOLS, choice))
    marks = set(tokenizer.encode("<tool_call>"))

    def choose(ids: list[int], rng: random.Random) -> int:
        return rng.choice([id for id in ids if id in marks] or ids) if rng.random() < 0.9 else rng.choice(ids)

    called, parameters = 0, {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS[:2]}  # type: ignore[index]
    try:
        for seed in range(12):
            ids, _ = walk(compiled, compiled.shortest + 20 * seed, seed, choose)
            message = parse_answer(format, tokenizer, ids)
            calls = message.get("tool_calls", [])
            called += len(calls)
            assert bool(calls) == ("<tool_call>" in text_of(constrainer, tokenizer, ids)), message
            for call in calls:
                function = call["function"]
                assert function["name"] in ("light",) if choice == "light" else ("weather", "light", "now")
                assert valid(parameters.get(function["name"], {"type": "object"}), function["arguments"])
                assert function["name"] != "now" or function["arguments"] == {}
    finally:
        constrainer.close()
    assert called >= {"required": 12, "light": 12, "auto": 0, "none": 0}[choice]
    assert choice != "none" or not called


def test_text_that_turns_into_a_call_is_held_from_there_on(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    format = load_format("k2")
    compiled = constrainer.compile(grammar.calls(call_layout(format), TOOLS, "auto"))
    matcher = compiled()
    for id in tokenizer.encode("Let me see.\n<tool_call>"):
        assert matcher.allowed(200)[id]
        assert matcher.accept(id, 200)
    rng, ids = random.Random(1), []
    while not matcher.finished:
        left = 100 - len(ids)
        id = rng.choice(matcher.allowed(left).nonzero()[:, 0].tolist())
        if matcher.accept(id, left):
            ids.append(id)
    message = parse_answer(format, tokenizer, tokenizer.encode("Let me see.\n<tool_call>") + ids)
    assert message["content"] == "Let me see."
    assert message["tool_calls"]


def test_several_calls_only_where_they_are_allowed(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    layout = call_layout(load_format("k2"))
    two = layout.write([("now", {}), ("light", {"on": True})])
    for parallel, fits in ((True, True), (False, False)):
        matcher = constrainer.compile(grammar.calls(layout, TOOLS, "required", parallel))()
        took = all(matcher.allowed(300)[id] and matcher.accept(id, 300) for id in tokenizer.encode(two))
        assert took == fits


# --- in the engine


def _model(vocab: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_constrained_and_free_requests_run_together(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    engine = Engine(_model(tokenizer.vocab_size + 20), vocab_size=tokenizer.vocab_size)
    compiled = constrainer.compile(grammar.json_schema(PERSON))
    stops = frozenset(constrainer.vocabulary.stop_ids)
    requests = []
    for index in range(12):
        sampling = Sampling(max_new_tokens=compiled.shortest + 3 * index, temperature=1.5 * (index % 2), seed=index)
        requests.append(Request([5, 6, 7 + index], sampling, stops, index=index, constraint=compiled if index % 3 else None))
    together = engine.generate(requests)
    for request, completion in zip(requests, together, strict=True):
        if request.constraint is not None:
            assert valid(PERSON, json.loads(tokenizer.decode(completion.content_ids)))
            assert len(completion.ids) <= request.sampling.max_new_tokens
    assert together[0].reason == "length"
    assert [engine.generate([request])[0].ids for request in requests] == [completion.ids for completion in together]


def test_sampling_under_a_constraint_keeps_the_model_s_proportions(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    """A refused token is drawn again from what is left: the rest keep their shares."""
    engine = Engine(_model(tokenizer.vocab_size), vocab_size=tokenizer.vocab_size)
    compiled = constrainer.compile(grammar.regex("[a-e]|[f-j]kkkkkkkkkk"))
    stops = frozenset(constrainer.vocabulary.stop_ids)
    requests = [
        Request([5, 6, 7], Sampling(max_new_tokens=1, temperature=1.0, seed=1), stops, index=index, constraint=compiled)
        for index in range(1500)
    ]
    got = [tokenizer.decode(c.content_ids) for c in engine.generate(requests)]
    shares = [got.count(letter) / len(got) for letter in "abcde"]
    assert sum(shares) == pytest.approx(1.0)
    logits = engine.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    want = logits[[tokenizer.encode(letter)[0] for letter in "abcde"]].softmax(-1).tolist()
    assert shares == pytest.approx(want, abs=0.05)


def _calls_and_texts(constrainer: Constrainer) -> list[Any]:
    """Constraints of several kinds, the last of which is none."""
    return [
        constrainer.compile(grammar.json_schema(PERSON)),
        constrainer.compile(grammar.calls(call_layout(load_format("k2")), TOOLS, "required")),
        constrainer.compile(grammar.calls(call_layout(load_format("k2")), TOOLS, "auto")),
        constrainer.compile(grammar.regex("([a-z]{1,9} ){3,200}")),
        None,
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_no_constrained_answer(constrainer: Constrainer, tokenizer: Tokenizer, temperature: float) -> None:
    """Thousands of tokens; the prompts hold what was answered before, so that much is drafted."""
    model = _model(tokenizer.vocab_size)
    made: list[Speculative] = []

    def drafting(model: Any, slots: int, alone: bool) -> Runner:
        made.append(Speculative(FastRunner(model, slots, 512), PromptLookup(longest=2, shortest=1)))
        return made[0]

    plain = Engine(model, vocab_size=tokenizer.vocab_size, runner=lambda m, slots, alone: FastRunner(m, slots, 512))
    stops = frozenset(constrainer.vocabulary.stop_ids)
    kinds = _calls_and_texts(constrainer)
    requests = [
        Request(
            [5, 6, 7 + i], Sampling(max_new_tokens=60 + 4 * i, temperature=temperature, seed=i), stops, index=i, constraint=kinds[i % 5]
        )
        for i in range(20)
    ]
    first = plain.generate(requests)
    again = [replace(r, ids=[*r.ids, *c.ids, 9, 5]) for r, c in zip(requests, first, strict=True)]
    want = [c.ids for c in plain.generate(again)]
    assert [c.ids for c in Engine(model, vocab_size=tokenizer.vocab_size, runner=drafting).generate(again)] == want
    assert sum(map(len, [*want, *(c.ids for c in first)])) > 2000
    assert made[0].counts["accepted"] > 50


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_asking_the_model_less_changes_no_answer(constrainer: Constrainer, tokenizer: Tokenizer, temperature: float) -> None:
    """Whoever wants log-probabilities has the model asked for every token; a greedy choice under a penalty of nothing sees every mask."""
    engine = Engine(_model(tokenizer.vocab_size), vocab_size=tokenizer.vocab_size, runner=lambda m, slots, alone: FastRunner(m, slots, 512))
    kinds, stops = _calls_and_texts(constrainer), frozenset(constrainer.vocabulary.stop_ids)
    before: list[list[int]] = []
    for bias in ({}, {5: 0.0}):
        sampling = [Sampling(max_new_tokens=80 + 9 * i, temperature=temperature, seed=i, logit_bias=bias) for i in range(10)]
        requests = [Request([5, 6, 7 + i], s, stops, index=i, constraint=kinds[i % 4]) for i, s in enumerate(sampling)]
        steps = engine.scheduler.counts["steps"]
        short = engine.generate(requests)
        asked = engine.scheduler.counts["steps"] - steps
        long = engine.generate([replace(r, logprobs=0) for r in requests])
        assert [c.ids for c in short] == [c.ids for c in long]
        assert asked < engine.scheduler.counts["steps"] - steps - asked, "or nothing was forced"
        if bias:
            assert [c.ids for c in short] == before
        before = [c.ids for c in short]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_of_more_ids_than_the_tokenizer_is_held(constrainer: Constrainer, tokenizer: Tokenizer, temperature: float) -> None:
    """Vocabularies are padded to round numbers; the ids beyond may well be the likeliest of all."""
    engine = Engine(_model(tokenizer.vocab_size + 64), runner=lambda m, slots, alone: FastRunner(m, slots, 512))
    compiled, stops = constrainer.compile(grammar.json_schema(PERSON)), frozenset(constrainer.vocabulary.stop_ids)
    sampling = [Sampling(max_new_tokens=90, temperature=temperature, seed=i, logit_bias={}) for i in range(20)]
    done = engine.generate([Request([5, 6, 7 + i], s, stops, index=i, constraint=compiled) for i, s in enumerate(sampling)])
    assert all(valid(PERSON, parse_json(text_of(constrainer, tokenizer, c.ids))) for c in done)


def test_only_text_is_written_as_the_tokenizer_writes_it(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    text = "The weather in Oslo is sunny today"
    matcher = constrainer.compile(grammar.choice([text]))()
    ids = tokenizer.encode(text)
    assert matcher.forced(60)[:5] == ids[:5]
    assert matcher.allowed(60).nonzero()[:, 0].tolist() == ids[:1]
    other = next(id for id in range(tokenizer.vocab_size) if tokenizer.decode([id]) == "T")
    assert not matcher.accept(other, 60)
    assert matcher.accept(ids[0], 60)
    assert not constrainer.compile(grammar.regex("[a-z]+"))().forced(9)


def test_forks_go_their_own_ways(constrainer: Constrainer) -> None:
    compiled = constrainer.compile(grammar.json_schema(PERSON))

    def steps(matcher: Any, seed: int) -> Iterator[int]:
        rng, left = random.Random(seed), 60
        while not matcher.finished and left:
            id = anything(matcher.allowed(left).nonzero()[:, 0].tolist(), rng)
            if matcher.accept(id, left):
                left -= 1
                yield id

    start = compiled()
    walks = [steps(start.fork(), seed) for seed in range(4)]
    turns = zip_longest(*walks)  # one id of each by turns
    together = [[id for id in ids if id is not None] for ids in zip(*turns, strict=True)]
    assert together == [list(steps(compiled(), seed)) for seed in range(4)]
    assert torch.equal(start.allowed(99), compiled().allowed(99))


def test_a_plan_with_a_known_end_is_the_plan(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    vocabulary, rng = constrainer.vocabulary, random.Random(3)
    for _ in range(200):
        known, other = (tuple(rng.choice(b'{"a": 12}, weather') for _ in range(rng.randrange(40))) for _ in range(2))
        run = other + known[rng.randrange(len(known) + 1) :]
        assert vocabulary.write(run, known, vocabulary.write(known)) == vocabulary.write(run)


def test_beams_keep_to_a_schema_in_any_budget(constrainer: Constrainer, tokenizer: Tokenizer) -> None:
    engine = Engine(_model(tokenizer.vocab_size), max_batch=8, vocab_size=tokenizer.vocab_size)
    compiled = constrainer.compile(grammar.json_schema(PERSON))
    stops = frozenset(constrainer.vocabulary.stop_ids)
    for spare in (0, 1, 5, 30):
        request = Request([5, 6, 7], Sampling(max_new_tokens=compiled.shortest + spare), stops, constraint=compiled)
        got = beam_search(engine, request, 3, n=3)
        assert got
        assert [score for _, score in got] == sorted((score for _, score in got), reverse=True)
        for completion, _ in got:
            assert valid(PERSON, json.loads(tokenizer.decode(completion.content_ids))), completion
    request = Request([5, 6, 7], Sampling(max_new_tokens=9), stops, constraint=constrainer.compile(grammar.choice(["red", "green"])))
    assert {tokenizer.decode(c.content_ids) for c, _ in beam_search(engine, request, 4, n=4)} == {"red", "green"}
