"""A thread that runs an engine, for callers in many threads: they hand in requests and are told each step. Knows no HTTP.

What fails, fails alone: a request whose constraint raises ends with its error, and where the model itself raises, the requests
that were running end with that error and the next ones are served.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import torch

from cairn.errors import UserError
from cairn.generate.engine import Engine, evaluating
from cairn.generate.job import Job
from cairn.generate.request import Completion, Request, Step
from cairn.generate.scheduler import Scheduler

T = TypeVar("T")


class Busy(UserError):
    """The queue is full, or the worker was stopped: the request was not taken."""


class Ticket:
    """A request that was handed in."""

    def __init__(self, worker: Worker, request: Request) -> None:
        self.request = request
        self._worker = worker
        self._ended = threading.Event()
        self.completion: Completion | None = None
        self.error: Exception | None = None
        self.job: Job | None = None
        self.left = False

    def cancel(self) -> None:
        """End the request before the next step; its last step says "cancelled". Does nothing once it ended. Any thread may call it."""
        self._worker.cancel(self)

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the answer.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            TimeoutError: it did not come in time.
            Exception: what ended the request in place of an answer.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError
        if self.error is not None:
            raise self.error
        assert self.completion is not None
        return self.completion

    def end(self, step: Step) -> None:
        """Note the last step. Called by the worker."""
        self.completion, self.error = step.completion, step.error
        self._ended.set()


class Worker:
    """Runs an engine in a thread of its own. Nobody else may use the engine meanwhile.

    Args:
        engine: the model.
        max_waiting: requests that may wait for a place; one more is refused.
    """

    def __init__(self, engine: Engine, *, max_waiting: int = 1024) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self._inbox: deque[tuple[Ticket, Request]] = deque()
        self._asides: deque[tuple[Callable[[Scheduler], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping: str | None = None
        self._failures = 0
        self.engine.scheduler  # noqa: B018 - made here, so that a model that cannot run is told to whoever starts the worker
        # OpenMP counts threads by thread: a new one would not know what this one was told, and other bits would come out.
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_step: Callable[[Step], None] | None = None) -> Ticket:
        """Hand in a request; any thread may.

        Args:
            request: what is asked.
            on_step: called with every step from the worker's thread, after the request's own `on_step`; it must return soon, for all wait.

        Raises:
            Busy: too many wait already, or the worker was stopped.
            UserError: the request cannot be run; see `Engine.check`.
        """
        self.engine.check(request)
        ticket = Ticket(self, request)

        def tell(step: Step) -> None:
            try:
                for told in (request.on_step, on_step):
                    if told is not None:
                        told(step)
            finally:
                if step.completion is not None or step.error is not None:
                    ticket.end(step)

        with self._changed:
            if self._stopping is not None:
                raise Busy("the engine is stopping", remedy="ask again when it runs")
            if len(self._inbox) + len(self.engine.scheduler.waiting) >= self.max_waiting:
                raise Busy(f"{self.max_waiting} requests wait already", remedy="ask again later")
            self._inbox.append((ticket, replace(request, on_step=tell)))
            self._changed.notify()
        return ticket

    def aside(self, work: Callable[[Scheduler], T]) -> Future[T]:
        """Have something done in the engine's thread between two steps; any thread may. It must be short, for all wait.

        Raises:
            Busy: the worker was stopped.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._stopping is not None:
                raise Busy("the engine is stopping", remedy="ask again when it runs")
            self._asides.append((work, future))
            self._changed.notify()
        return future

    def cancel(self, ticket: Ticket) -> None:
        """See `Ticket.cancel`."""
        with self._changed:
            ticket.left = True
            if ticket.job is not None:
                self.engine.scheduler.cancel(ticket.job)
            self._changed.notify()

    def stats(self) -> dict[str, float]:
        """Waiting, running, resting now; requests, prompt_tokens, cached_tokens, tokens, steps, failures since the start."""
        scheduler = self.engine.scheduler
        waiting = len(self._inbox) + len(scheduler.waiting)
        now = {"waiting": waiting, "running": len(scheduler.running), "resting": scheduler.resting, "failures": self._failures}
        return {**now, **scheduler.counts}

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Take no more requests and end the thread.

        Args:
            drain: answer those that were taken; else they end with reason "cancelled".
            timeout: seconds to wait; afterwards what still runs is cancelled.

        Returns:
            Whether all that was taken was answered.
        """
        with self._changed:
            self._stopping = "drain" if drain else "cancel"
            self._changed.notify()
        self._thread.join(timeout)
        drained = drain and not self._thread.is_alive()
        if self._thread.is_alive():
            with self._changed:
                self._stopping = "cancel"
                self._changed.notify()
            self._thread.join()
        return drained

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            with self._changed:
                while not self._inbox and not self._asides and self.engine.scheduler.idle and self._stopping is None:
                    self._changed.wait()
                if self._stopping == "cancel":
                    break
                self._take()
                if self.engine.scheduler.idle and not self._asides and self._stopping is not None:
                    break
            try:
                with evaluating(self.engine.model):
                    self._do_aside()
                    self.engine.scheduler.step()
            except Exception as error:
                self._failures += 1
                self.engine.scheduler.reset(error)
        with self._changed:
            self._take()
            while self._asides:
                self._asides.popleft()[1].cancel()
        self.engine.scheduler.reset()

    def _do_aside(self) -> None:
        """One of what is to be done between steps, so that callers who wait for many cannot hold up the answers."""
        with self._changed:
            found = self._asides.popleft() if self._asides else None
        if found is None or not found[1].set_running_or_notify_cancel():
            return
        work, future = found
        try:
            future.set_result(work(self.engine.scheduler))
        except Exception as error:
            future.set_exception(error)
            raise  # its slots are in no known state

    def _take(self) -> None:
        """Move what was handed in to the scheduler. The lock is held."""
        scheduler = self.engine.scheduler
        while self._inbox:
            ticket, request = self._inbox.popleft()
            ticket.job = scheduler.submit(request, self.engine.limit(request))
            if ticket.left:
                scheduler.cancel(ticket.job)
