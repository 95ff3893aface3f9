"""Who runs when: joining, leaving, prefixes, the budget, and the deterministic mode under load."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.generate.engine import Engine, Request, Step
from cairn.generate.hf_runner import HfRunner
from cairn.generate.request import Completion
from cairn.generate.runner import Piece
from cairn.generate.sampling import Sampling
from cairn.generate.scheduler import Scheduler, common

from .conftest import VOCAB, build, prompts


class Counting:
    """A runner that says the sum of a slot's ids and refuses whatever a real one could not do."""

    def __init__(self, slots: int) -> None:
        self.slots, self.capacity = slots, 1000
        self.held: dict[int, list[int]] = {}
        self.steps: list[dict[int, int]] = []
        """Of each step: slot to how many tokens were computed."""

    def cost(self, tokens: int) -> int:
        return tokens

    def forward(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        assert len({p.slot for p in pieces}) == len(pieces)
        self.steps.append({p.slot: len(p.ids) for p in pieces})
        out = []
        for p in pieces:
            assert 0 <= p.slot < self.slots
            held = self.held.setdefault(p.slot, [])
            assert len(held) >= p.start
            assert p.ids
            self.held[p.slot] = held[: p.start] + p.ids
            logits = torch.zeros(p.wanted, VOCAB)
            for i in range(p.wanted):
                ids = self.held[p.slot][: len(self.held[p.slot]) - p.wanted + i + 1]
                logits[i, sum((7 * j + 1) * id for j, id in enumerate(ids)) % VOCAB] = 1.0
            out.append(logits)
        return out

    def copy(self, source: int, target: int, length: int) -> None:
        assert source != target
        assert len(self.held[source]) >= length
        self.held[target] = self.held[source][:length]

    def truncate(self, slot: int, length: int) -> None:
        self.held[slot] = self.held.get(slot, [])[:length]


def answer_of(ids: Sequence[int], new: int) -> list[int]:
    whole = list(ids)
    for _ in range(new):
        whole.append(sum((7 * j + 1) * id for j, id in enumerate(whole)) % VOCAB)
    return whole[len(ids) :]


def make(slots: int = 8, budget: int = 10_000, **options: Any) -> tuple[Scheduler, Counting]:
    runner = Counting(slots)
    return Scheduler(runner, vocab=VOCAB, most=slots, budget=budget, **options), runner


def ask(ids: Sequence[int], new: int = 4, **more: Any) -> Request:
    return Request(list(ids), Sampling(max_new_tokens=new), **more)


def finish(scheduler: Scheduler) -> None:
    for _ in range(10_000):
        if scheduler.idle:
            return
        scheduler.step()
    pytest.fail("the scheduler does not come to an end")


def test_requests_join_and_leave_a_running_batch() -> None:
    scheduler, runner = make()
    first = scheduler.submit(ask([1, 2, 3], 6), 6)
    scheduler.step()
    scheduler.step()
    second = scheduler.submit(ask([4, 5], 2), 2)
    finish(scheduler)
    assert [len(step) for step in runner.steps] == [1, 1, 2, 2, 1, 1]
    assert (first.answer, second.answer) == (answer_of([1, 2, 3], 6), answer_of([4, 5], 2))


def test_a_long_prompt_comes_in_chunks_beside_running_answers() -> None:
    scheduler, runner = make(chunk=16)
    scheduler.submit(ask([1, 2, 3], 12), 12)
    scheduler.step()
    prompt = [i % 90 for i in range(50)]
    long = scheduler.submit(ask(prompt, 2), 2)
    finish(scheduler)
    assert [sorted(step.values()) for step in runner.steps[1:5]] == [[1, 16], [1, 16], [1, 16], [1, 2]]
    assert long.answer == answer_of(prompt, 2)


@pytest.mark.parametrize("deterministic", [False, True])
def test_equal_prompts_are_computed_once(deterministic: bool) -> None:
    scheduler, runner = make(deterministic=deterministic)
    prompt = [i % 90 for i in range(40)]
    jobs = [scheduler.submit(ask(prompt, 3, sample=i), 3) for i in range(5)]
    finish(scheduler)
    assert list(runner.steps[0].values()) == [40]
    assert sum(sum(step.values()) for step in runner.steps) == 40 + 5 * 2
    assert sorted(j.cached for j in jobs) == [0, 40, 40, 40, 40]
    assert all(j.answer == answer_of(prompt, 3) for j in jobs)


def test_a_shared_beginning_is_computed_once_and_waited_for() -> None:
    scheduler, runner = make(chunk=32)
    shared = [i % 90 for i in range(64)]
    jobs = [scheduler.submit(ask([*shared, 91, i], 3), 3) for i in range(5)]
    finish(scheduler)
    assert [j.cached for j in jobs] == [0, 64, 64, 64, 64]  # one token more is not worth another wait
    assert sum(sum(step.values()) for step in runner.steps) == 66 + 4 * 2 + 5 * 2
    assert all(j.answer == answer_of(j.prompt, 3) for j in jobs)


def test_deterministic_sharing_ends_where_prompts_are_cut() -> None:
    scheduler, _ = make(chunk=16, deterministic=True)
    shared = [i % 90 for i in range(40)]
    jobs = [scheduler.submit(ask([*shared, 91, i], 3), 3) for i in range(3)]
    finish(scheduler)
    assert [j.cached for j in jobs] == [0, 32, 32]


def test_a_dialogue_goes_on_where_it_ended() -> None:
    scheduler, _ = make(keep=True)
    first = scheduler.submit(ask(range(20), 5), 5)
    finish(scheduler)
    again = [*range(20), *first.answer, 3, 4]
    second = scheduler.submit(ask(again, 2), 2)
    finish(scheduler)
    assert second.cached == 24  # the last token of an answer was never an input
    assert second.answer == answer_of(again, 2)
    assert scheduler.resting == 1, "the same slot went on"


def test_nothing_is_kept_unless_asked_for() -> None:
    scheduler, runner = make()
    scheduler.submit(ask(range(20)), 4)
    finish(scheduler)
    assert scheduler.resting == 0
    assert all(not ids for ids in runner.held.values())
    second = scheduler.submit(ask(range(20)), 4)
    finish(scheduler)
    assert second.cached == 0


def test_the_budget_makes_requests_wait_and_is_never_passed() -> None:
    scheduler, runner = make(budget=60, keep=True)
    jobs = [scheduler.submit(ask([i, *range(14)], 6), 6) for i in range(9)]
    while not scheduler.idle:
        scheduler.step()
        assert sum(j.total for j in scheduler.running) <= 60
        assert sum(len(ids) for ids in runner.held.values()) <= 60
    assert all(j.answer == answer_of(j.prompt, 6) for j in jobs)
    assert max(len(step) for step in runner.steps) == 3


def test_a_request_above_the_budget_runs_alone() -> None:
    scheduler, runner = make(budget=30)
    jobs = [scheduler.submit(ask(ids, 4), 4) for ids in ([1, 2], range(50), [3, 4])]
    finish(scheduler)
    assert all(j.answer == answer_of(j.prompt, 4) for j in jobs)
    assert all(len(step) == 1 for step in runner.steps if max(step.values()) > 2)


def test_a_cancelled_request_gives_its_place_to_the_next() -> None:
    scheduler, _ = make(slots=1)
    steps: list[Step] = []
    first = scheduler.submit(ask([1, 2], 50, on_step=steps.append), 50)
    second, third = (scheduler.submit(ask([i, 4], 2), 2) for i in (5, 6))
    scheduler.step()
    scheduler.cancel(first)
    scheduler.cancel(third)
    finish(scheduler)
    assert first.completion == Completion(answer_of([1, 2], 1), "cancelled")
    assert steps[-1].completion is first.completion
    assert second.answer == answer_of([5, 4], 2)
    assert third.completion == Completion([], "cancelled")


LENGTHS = st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(0, 3))


WORK = st.lists(LENGTHS, min_size=1, max_size=25)


@settings(deadline=None, max_examples=60)
@given(WORK, st.integers(1, 6), st.sampled_from([40, 90, 400]), st.booleans(), st.booleans(), st.randoms())
def test_whatever_comes_is_answered_right(
    sizes: list[tuple[int, int, int]], slots: int, budget: int, deterministic: bool, keep: bool, rng: random.Random
) -> None:
    scheduler, runner = make(slots, budget, deterministic=deterministic, keep=keep, chunk=16)
    base = [i % 90 for i in range(60)]
    jobs, pending = [], list(sizes)
    while pending or not scheduler.idle:
        while pending and rng.random() < 0.5:
            length, new, kind = pending.pop()
            prompt = base[:length] if kind else [rng.randrange(VOCAB) for _ in range(length)]
            if kind == 2:
                prompt[-1] = 95
            jobs.append(scheduler.submit(ask(prompt, new), new))
            if kind == 3:
                scheduler.cancel(jobs[-1])
        scheduler.step()
        held = sum(len(ids) for ids in runner.held.values())
        assert held <= budget or len(scheduler.running) == 1
        assert len(scheduler.running) + scheduler.resting + len(scheduler._free) == slots
    for job in jobs:
        assert job.completion is not None
        assert job.answer == ([] if job.completion.reason == "cancelled" else answer_of(job.prompt, job.limit))


def test_a_copied_beginning_its_source_and_what_else_rests_keep_within_the_budget() -> None:
    scheduler, runner = make(3, 40, keep=True)
    base = list(range(8))
    for _ in range(2):
        scheduler.submit(ask(base, 9), 9)
    finish(scheduler)
    assert scheduler.resting == 2
    scheduler.submit(ask([*base, 95], 1), 1)
    finish(scheduler)
    assert sum(len(ids) for ids in runner.held.values()) <= 40


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12))
def test_the_shared_beginning(a: list[int], b: list[int]) -> None:
    want = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common(a, b) == want


def bits(model: Any, requests: list[Request], slots: int, seed: int) -> dict[int, tuple[list[int], list[float]]]:
    """Answers and every log-probability of the whole vocabulary, with requests handed in at random times."""
    rng = random.Random(seed)
    scheduler = Scheduler(
        HfRunner(model, slots, alone=True), vocab=VOCAB, most=slots, budget=8192, chunk=16, deterministic=True, keep=bool(seed % 2)
    )
    jobs, left = {}, list(requests)
    rng.shuffle(left)
    while left or not scheduler.idle:
        while left and rng.random() < 0.4:
            request = left.pop()
            jobs[request.index] = scheduler.submit(request, request.sampling.max_new_tokens)
        scheduler.step()
    done = {index: job.completion for index, job in jobs.items()}
    return {i: (c.ids, [p for e in c.logprobs or [] for _, p in e.top]) for i, c in done.items() if c is not None}


@pytest.mark.parametrize("family", ["llama", "gemma2", "mpt"])
def test_deterministic_answers_have_the_same_bits_under_any_load(family: str) -> None:
    model = build(family)
    base = prompts(1, seed=1, low=50, high=50)[0]
    given = [base[:n] + extra for n, extra in zip((50, 50, 40, 33, 20, 7), ([], [], [9, 9], [8], [7, 7, 7], [6]), strict=True)]
    given += prompts(14, seed=2, high=60)
    requests = [
        Request(ids, Sampling(max_new_tokens=3 + i, temperature=0.7 * (i % 3), seed=i), index=i, logprobs=VOCAB)
        for i, ids in enumerate(given)
    ]
    alone = {r.index: bits(model, [r], 1, 0)[r.index] for r in requests}
    for seed in (1, 2, 3):
        assert bits(model, requests, 3 + 3 * seed, seed) == alone


def test_completions_say_whether_they_are_deterministic(llama: Any) -> None:
    for deterministic in (False, True):
        [completion] = Engine(llama, deterministic=deterministic).generate([ask([5, 6, 7])])
        assert completion.deterministic is deterministic


def test_a_runner_that_is_invariant_is_deterministic_unasked_and_batched(llama: Any) -> None:
    """Nothing runs by itself then: a step of the mode that was asked for computes as many requests as one without it."""
    from cairn.generate.fast import FastRunner

    requests = [
        Request(ids, Sampling(max_new_tokens=9, temperature=0.7 * (i % 3), top_p=0.8 + 0.1 * (i % 3), seed=i), index=i)
        for i, ids in enumerate(prompts(12, seed=3, high=60))
    ]
    steps = {}
    for asked in (False, True):
        engine = Engine(llama, deterministic=asked, runner=lambda m, slots, alone: FastRunner(m, slots, 128))
        assert engine.deterministic
        together = engine.generate(requests)
        assert all(completion.deterministic for completion in together)
        steps[asked] = engine.scheduler.counts["steps"]
        assert [engine.generate([request])[0] for request in requests] == together
    assert steps[True] == steps[False] < 30
    assert not Engine(llama).deterministic


def test_an_answer_is_confirmed_where_it_is_the_greedy_one_and_there_is_room(llama: Any) -> None:
    engine = Engine(llama, max_batch=2, max_batch_tokens=600)
    given = prompts(5, seed=4, low=20, high=40)
    answers = [engine.generate([Request(ids, Sampling(max_new_tokens=12))])[0].ids for ids in given]
    scheduler = engine.scheduler
    for ids, answer in zip(given, answers, strict=True):
        assert scheduler.confirm(ids, answer, 1e-4)
        assert scheduler.confirm(ids, answer[:5], 1e-4)
        for place in (0, 5, 11):
            assert not scheduler.confirm(ids, [*answer[:place], answer[place] ^ 1, *answer[place + 1 :]], 1e-4)
        assert not scheduler.confirm(ids, answer, 1e9)
    assert not scheduler.confirm([5] * 200, [1], 0.0)
    before = len(scheduler._free) + scheduler.resting
    jobs = [scheduler.submit(Request(ids, Sampling(max_new_tokens=12)), 12) for ids in given]
    while not scheduler.idle:
        scheduler.step()
        scheduler.confirm(given[0], answers[0], 1e-4)
    assert [job.completion.ids for job in jobs if job.completion is not None] == answers
    assert len(scheduler._free) + scheduler.resting == before
