"""The engine against transformers' own generation, in every way of batching, and its reasons, limits and refusals."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

from cairn.errors import UserError
from cairn.generate.engine import Completion, Engine, Request
from cairn.generate.sampling import Sampling
from cairn.ledger import seeds

from .conftest import FAMILIES, VOCAB, build, prompts


def reference(model: Any, ids: list[int], new: int, stop: list[int] | None = None, **options: Any) -> list[int]:
    """What transformers itself generates, one unpadded prompt at a time."""
    config = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=stop, pad_token_id=0, **options)
    given = torch.tensor([ids])
    out = model.generate(given, attention_mask=torch.ones_like(given), generation_config=config)
    return out[0, len(ids) :].tolist()


def greedy(count: int, seed: int, new: int = 12, high: int = 40) -> list[Request]:
    return [Request(ids, Sampling(max_new_tokens=new), index=i) for i, ids in enumerate(prompts(count, seed, high=high))]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_token_by_token(family: str) -> None:
    model = build(family)
    stop = frozenset(range(20, 26))
    requests = [
        Request(ids, Sampling(max_new_tokens=4 + 2 * i), stop, index=i) for i, ids in enumerate(prompts(9, seed=1, high=24))
    ]
    got = Engine(model).generate(requests)
    assert [c.ids for c in got] == [reference(model, list(r.ids), r.sampling.max_new_tokens, sorted(stop)) for r in requests]
    assert len({tuple(c.ids) for c in got}) >= 7, "the model must not say the same to every prompt, or nothing was tested"


def test_repetition_penalty_equals_transformers(llama: Any) -> None:
    given = prompts(5, seed=4)
    requests = [Request(ids, Sampling(max_new_tokens=20, repetition_penalty=1.4)) for ids in given]
    got = [c.ids for c in Engine(llama).generate(requests)]
    assert got == [reference(llama, ids, 20, repetition_penalty=1.4) for ids in given]
    assert got != [c.ids for c in Engine(llama).generate([Request(ids, Sampling(max_new_tokens=20)) for ids in given])]


@pytest.mark.parametrize("options", [{"max_batch": 1}, {"max_batch": 3}, {"max_batch_tokens": 70}, {"deterministic": True}])
def test_batching_does_not_change_greedy_answers(llama: Any, options: dict[str, Any]) -> None:
    requests = greedy(12, seed=2)
    assert Engine(llama, **options).generate(requests) == Engine(llama).generate(requests)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_order_of_requests_changes_nothing(llama: Any, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(max_new_tokens=9, temperature=temperature, top_p=0.9)
    requests = [Request(ids, sampling, index=i) for i, ids in enumerate(prompts(10, seed=3, high=8) * 2)]
    engine = Engine(llama, max_batch=6)
    inputs: list[list[list[int]]] = []
    forward = llama.forward
    monkeypatch.setattr(llama, "forward", lambda **given: (inputs.append(given["input_ids"].tolist()), forward(**given))[1])
    straight = engine.generate(requests)
    seen, inputs = inputs, []
    order = list(range(20))
    random.Random(0).shuffle(order)
    shuffled = engine.generate([requests[i] for i in order])
    assert [straight[i] for i in order] == shuffled
    assert inputs == seen, "the same batches must run, or the answers are only equal up to rounding"


def test_deterministic_answers_do_not_depend_on_company(llama: Any) -> None:
    engine = Engine(llama, deterministic=True)
    requests = [Request(ids, Sampling(max_new_tokens=8, temperature=1.0), index=i) for i, ids in enumerate(prompts(8, seed=5))]
    assert engine.generate(requests) == [engine.generate([r])[0] for r in requests]


def test_stream_gives_the_ids_of_generate(llama: Any) -> None:
    request = Request(prompts(1, seed=6)[0], Sampling(max_new_tokens=15, temperature=0.8, seed=3), index=7)
    engine = Engine(llama)
    assert list(engine.stream(request)) == engine.generate([request])[0].ids


def test_the_draw_depends_on_seed_and_index_alone(llama: Any) -> None:
    ids = prompts(1, seed=7)[0]

    def answer(seed: int, index: int) -> list[int]:
        torch.manual_seed(random.randrange(1000))  # a global generator must have no say
        return Engine(llama).generate([Request(ids, Sampling(max_new_tokens=12, temperature=2.0, seed=seed), index=index)])[0].ids

    assert answer(1, 0) == answer(1, 0)
    assert len({tuple(answer(seed, index)) for seed, index in ((1, 0), (2, 0), (1, 1))}) == 3


def test_each_step_draws_its_own_number() -> None:
    model = build("llama")
    model.lm_head.weight.data.zero_()  # every token is as likely as any other
    got = Engine(model).generate([Request([5] * n, Sampling(max_new_tokens=9, temperature=1, seed=4), index=n) for n in (3, 8)])
    for index, completion in zip((3, 8), got, strict=True):
        assert completion.ids == [int(seeds.uniform(4, f"sample/{index}", step) * VOCAB) for step in range(9)]


def test_reasons(llama: Any) -> None:
    ids = prompts(1, seed=8)[0]
    free = Engine(llama).generate([Request(ids, Sampling(max_new_tokens=10))])[0]
    assert (free.reason, free.stop_id, len(free.ids)) == ("length", None, 10)
    assert free.content_ids == free.ids

    token = free.ids[4]
    first = free.ids.index(token)
    stopped = Engine(llama).generate([Request(ids, Sampling(max_new_tokens=10), frozenset({token}))])[0]
    assert stopped == Completion(free.ids[: first + 1], "stop", token)
    assert stopped.content_ids == free.ids[:first]

    called = Engine(llama).generate([Request(ids, Sampling(max_new_tokens=10), stop=lambda answer: len(answer) == 3)])[0]
    assert called == Completion(free.ids[:3], "stop")


def test_cancelling_keeps_what_was_generated(llama: Any) -> None:
    steps = iter([False, False, False, True, True, True, True])
    requests = greedy(3, seed=10, new=20)
    got = Engine(llama).generate(requests, cancelled=lambda: next(steps))
    whole = Engine(llama).generate(requests)
    assert [c.reason for c in got] == ["cancelled"] * 3
    assert [c.ids for c in got] == [c.ids[:3] for c in whole]


def test_cancelling_leaves_finished_answers_and_skips_the_rest(llama: Any) -> None:
    done = [0]
    engine = Engine(llama, max_batch=2)
    got = engine.generate(greedy(4, seed=11, new=5), lambda finished, tokens: done.append(finished), lambda: done[-1] >= 2)
    assert sorted((c.reason, len(c.ids)) for c in got) == [("cancelled", 0)] * 2 + [("length", 5)] * 2


def test_progress_counts_up_to_all(llama: Any) -> None:
    seen: list[tuple[int, int]] = []
    Engine(llama, max_batch=2).generate(greedy(5, seed=12, new=4), lambda done, tokens: seen.append((done, tokens)))
    assert seen == sorted(seen)
    assert seen[-1] == (5, 20)


def test_generation_ends_at_the_models_context(llama: Any) -> None:
    long, full = [5] * 126, [5] * 128
    got = Engine(llama).generate([Request(long, Sampling(max_new_tokens=50)), Request(full, Sampling(max_new_tokens=50))])
    assert [(len(c.ids), c.reason) for c in got] == [(3, "length"), (1, "length")]


def test_learned_positions_end_at_the_context_too() -> None:
    model = build("gpt2")
    got = Engine(model).generate([Request([5] * 120, Sampling(max_new_tokens=50)), Request([6] * 90, Sampling(max_new_tokens=50))])
    assert [(len(c.ids), c.reason) for c in got] == [(9, "length"), (39, "length")]


@pytest.mark.parametrize(
    ("ids", "word"),
    [([], "no token"), ([5] * 129, "129 tokens, the model's context holds 128"), ([5, VOCAB], f"id {VOCAB}"), ([-1], "id -1")],
)
def test_refusals_come_before_any_work(llama: Any, ids: list[int], word: str) -> None:
    asked: list[int] = []
    with pytest.raises(UserError, match=word) as error:
        Engine(llama).generate([Request([5, 6]), Request(ids, index=3)], lambda done, tokens: asked.append(done))
    assert error.value.where == "request 3"
    assert error.value.remedy
    assert asked == []


def test_an_encoder_is_refused() -> None:
    config = transformers.T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(UserError, match="encoder"):
        Engine(model)


def test_ids_beyond_the_tokenizer_are_never_chosen(llama: Any) -> None:
    requests = [Request(ids, Sampling(max_new_tokens=20, temperature=t)) for t in (0.0, 3.0) for ids in prompts(4, seed=13)]
    free = Engine(llama).generate(requests)
    assert max(max(c.ids) for c in free) >= 60
    limited = Engine(llama, vocab_size=60).generate(requests)
    assert max(max(c.ids) for c in limited) < 60


def test_broken_weights_are_told_and_not_sampled() -> None:
    model = build("llama", seed=1)
    model.lm_head.weight.data[7] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match="not finite"):
            Engine(model).generate([Request([5, 6, 7], Sampling(temperature=temperature))])


def test_a_training_model_is_put_back(llama: Any) -> None:
    llama.train()
    try:
        list(Engine(llama).stream(Request([5, 6], Sampling(max_new_tokens=2))))
        assert llama.training
    finally:
        llama.eval()


def test_nothing_to_do(llama: Any) -> None:
    assert Engine(llama).generate([]) == []
