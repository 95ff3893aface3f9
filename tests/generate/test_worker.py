"""A worker under many callers: equal answers, refusals, cancelling, failures that stay alone, and stopping."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cairn.errors import UserError
from cairn.generate.engine import Engine, Request, Step
from cairn.generate.matcher import Matcher
from cairn.generate.sampling import Sampling
from cairn.generate.worker import Busy, Worker

from .conftest import build, prompts

LONG = 300


@pytest.fixture
def worker(llama: Any) -> Iterator[Worker]:
    made = Worker(Engine(llama, max_batch=8, deterministic=True, keep=True))
    yield made
    made.stop(drain=False)


def ask(ids: list[int], new: int = 8, **more: Any) -> Request:
    return Request(ids, Sampling(max_new_tokens=new), **more)


def test_callers_of_many_threads_get_the_answers_of_generate(worker: Worker, llama: Any) -> None:
    given = prompts(24, seed=1)
    got: dict[int, Any] = {}

    def call(i: int) -> None:
        got[i] = worker.submit(ask(given[i], index=i)).result(60)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(24)] == Engine(llama, deterministic=True).generate([ask(ids, index=i) for i, ids in enumerate(given)])
    assert worker.stop()
    stats = worker.stats()
    assert (stats["requests"], stats["tokens"], stats["waiting"], stats["running"]) == (24, 24 * 8, 0, 0)


def test_steps_come_one_by_one_and_the_last_one_holds_the_answer(worker: Worker) -> None:
    steps: list[Step] = []
    completion = worker.submit(ask(prompts(1, seed=2)[0], logprobs=2), steps.append).result(60)
    assert [id for step in steps for id in step.ids] == completion.ids
    assert [entry for step in steps for entry in step.logprobs] == completion.logprobs
    assert [step.completion is None for step in steps] == [True] * 7 + [False]
    assert steps[-1].completion is completion


def test_a_cancelled_request_ends_and_leaves_its_place(worker: Worker) -> None:
    begun = threading.Event()
    ticket = worker.submit(ask([5, 6, 7], 120), lambda step: begun.set())
    assert begun.wait(60)
    ticket.cancel()
    assert ticket.result(60).reason == "cancelled"
    waiting = worker.submit(ask([5, 6], 3))
    waiting.cancel()
    assert waiting.result(60).reason in ("cancelled", "length")
    assert worker.submit(ask([5, 6, 8], 3)).result(60).reason == "length"
    assert worker.stop()
    assert worker.stats()["running"] == 0


def test_one_request_too_many_is_refused(llama: Any) -> None:
    hold, entered = threading.Event(), threading.Event()

    def block(step: Step) -> None:
        entered.set()
        hold.wait(60)

    worker = Worker(Engine(llama, max_batch=1), max_waiting=2)
    worker.submit(ask([5, 6], 2), block)
    assert entered.wait(60)
    rest = [worker.submit(ask([7, i + 5], 2)) for i in range(2)]
    with pytest.raises(Busy, match="2 requests wait"):
        worker.submit(ask([9, 9], 2))
    hold.set()
    assert [ticket.result(60).reason for ticket in rest] == ["length"] * 2
    assert worker.stop()
    with pytest.raises(Busy, match="stopping"):
        worker.submit(ask([5, 6]))


def test_a_bad_request_is_refused_where_it_is_made(worker: Worker) -> None:
    with pytest.raises(UserError, match="no token"):
        worker.submit(ask([]))


class Raises(Matcher):
    finished = False

    def allowed(self, left: int) -> torch.Tensor | None:
        raise ValueError("a constraint that breaks")

    def accept(self, id: int, left: int) -> bool:
        raise ValueError("a constraint that breaks")


def test_failures_stay_alone(worker: Worker) -> None:
    def bad_stop(ids: list[int]) -> bool:
        raise KeyError("stop")

    def bad_step(step: Step) -> None:
        raise OSError("gone")

    good = worker.submit(ask([5, 6, 7], 30))
    broken = [
        worker.submit(ask([8, 6, 7], constraint=Raises)),
        worker.submit(ask([9, 6, 7], stop=bad_stop)),
        worker.submit(ask([4, 6, 7]), bad_step),
    ]
    for ticket, kind in zip(broken, (ValueError, KeyError, OSError), strict=True):
        with pytest.raises(kind):
            ticket.result(60)
    assert len(good.result(60).ids) == 30
    assert worker.stop()
    assert worker.stats()["running"] == 0


@pytest.mark.parametrize("stop", [False, True])
def test_a_caller_who_cannot_be_told_of_the_end_ends_nobody_else(worker: Worker, stop: bool) -> None:
    """Whoever raises when told that its request was cancelled: the others are answered, or told so too."""
    begun = threading.Event()

    def gone(step: Step) -> None:
        begun.set()
        if step.completion is not None:
            raise OSError("gone")

    leaver, stayer = worker.submit(ask([8, 6, 7], 100), gone), worker.submit(ask([5, 6, 7], 100))
    assert begun.wait(60)
    if stop:
        worker.stop(drain=False)
    leaver.cancel()
    assert leaver.result(60).reason == "cancelled"
    assert stayer.result(60).reason == ("cancelled" if stop else "length")
    assert worker.stats()["failures"] == 0


def test_a_model_that_raises_ends_what_runs_and_serves_the_next() -> None:
    engine = Engine(build("llama"), max_batch=4)
    forward = engine.scheduler.runner.forward

    def fails(pieces: Any) -> Any:
        if any(13 in piece.ids for piece in pieces):
            raise RuntimeError("out of memory")
        return forward(pieces)

    engine.scheduler.runner.forward = fails  # type: ignore[method-assign]
    worker = Worker(engine)
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.submit(ask([5, 13, 7])).result(60)
    fresh = worker.submit(ask([5, 6, 7], 1)).result(60)
    assert fresh.reason == "length"
    assert worker.stats()["failures"] == 1
    worker.stop()


@pytest.mark.parametrize(("drain", "reason"), [(True, "length"), (False, "cancelled")])
def test_stopping_answers_or_cancels_what_was_taken(llama: Any, drain: bool, reason: str) -> None:
    worker = Worker(Engine(llama, max_batch=2))
    tickets = [worker.submit(ask([5, i + 5], 100)) for i in range(5)]
    assert worker.stop(drain) == drain
    assert {ticket.result(1).reason for ticket in tickets} == {reason}


def test_what_is_done_aside_comes_between_steps_and_fails_alone(worker: Worker) -> None:
    begun, go = threading.Event(), threading.Event()

    def hold(step: Step) -> None:
        begun.set()
        go.wait(60)

    ticket = worker.submit(ask(prompts(1, seed=2)[0], 20), hold)
    assert begun.wait(60)
    future = worker.aside(lambda scheduler: len(scheduler.running))
    assert not future.done(), "done in the middle of a step"
    go.set()
    assert future.result(60) == 1
    assert len(ticket.result(60).ids) == 20
    assert worker.aside(lambda scheduler: scheduler.idle).result(60)
    with pytest.raises(ZeroDivisionError):
        worker.aside(lambda scheduler: 1 / 0).result(60)
    assert len(worker.submit(ask([5, 6])).result(60).ids) == 8
    worker.stop()
    with pytest.raises(Busy):
        worker.aside(lambda scheduler: 1)
