"""Runs a job's requests on the worker and hands out what comes, until all have ended or the caller has gone. Knows no JSON."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from cairn.errors import UserError
from cairn.generate.request import Request, Step
from cairn.generate.worker import Busy, Ticket, Worker
from cairn.serve.answer import Answer, Delta
from cairn.serve.errors import INTERNAL, ApiError, from_user_error
from cairn.serve.job import Job
from cairn.serve.metrics import Metrics
from cairn.serve.shapes import best

T = TypeVar("T")


class Running:
    """One job under way.

    Args:
        worker: runs the engine.
        job: what is asked.
        metrics: what is counted.
        arrived: when the request came, on the loop's clock.
        deadline: when it must have ended, on the same clock.
        on_error: told about mistakes that are ours.
        on_whole: called with this once all answers have come; its `events` and `ids` are kept for that alone.

    Raises:
        ApiError: from `deltas`, where the answers cannot be finished.
    """

    def __init__(
        self, worker: Worker, job: Job, metrics: Metrics, *, arrived: float, deadline: float, on_error: Callable[[BaseException], None],
        on_whole: Callable[[Running], None] | None = None,
    ) -> None:  # fmt: skip
        self._worker, self._job, self._metrics, self._deadline = worker, job, metrics, deadline
        self._arrived, self._on_error, self._on_whole = arrived, on_error, on_whole
        self.answers: list[Answer] = [job.answer(place) for place in range(len(job.requests))]
        self.count, self.prompt_tokens = len(job.requests), job.prompt_tokens
        self.events: list[tuple[int, Delta]] = []
        """What `deltas` gave."""
        self.ids: list[int] = []
        """Every id of the first answer."""

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """(place of the answer, what became certain of it), as the engine brings it."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[int, Step] | None] = asyncio.Queue()
        # Not `asyncio.timeout`, which belongs to one task: a stream's first event and the others come out of two.
        alarm = loop.call_at(self._deadline, arrived.put_nowait, None)

        def listen(place: int) -> Callable[[Step], None]:
            def on_step(step: Step) -> None:
                # The loop may have closed while the worker still drains.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(arrived.put_nowait, (place, step))

            return on_step

        tickets: dict[int, Ticket] = {}
        reason = "cancelled"
        try:
            for place, request in enumerate(self._job.requests):
                tickets[place] = self._submitted(request, listen(place))
            first = True
            while tickets:
                found = await arrived.get()
                if found is None:
                    raise ApiError(504, "the time for this request is over", code="timeout")
                place, step = found
                if place not in tickets:
                    continue  # what a stop string cut off was still under way
                delta = self._read(place, step)
                if delta.finish:
                    tickets.pop(place).cancel()
                # The first token is told even where its text is held back: the caller sees that the answer has begun.
                begins, first = first, False
                if begins:
                    self._metrics.first_token(loop.time() - self._arrived)
                if begins or not delta.empty:
                    if self._on_whole is not None:
                        self.events.append((place, delta))
                    yield place, delta
            reason = "finished"
            if self._on_whole is not None:
                self._on_whole(self)
        except ApiError as error:
            reason = error.code or "refused"
            raise
        finally:
            alarm.cancel()
            for ticket in tickets.values():
                ticket.cancel()
            self._metrics.prompt(self._job.prompt_tokens, self.cached)
            self._metrics.finished(reason, loop.time() - self._arrived)

    def _submitted(self, request: Request, on_step: Callable[[Step], None]) -> Ticket:
        try:
            return self._worker.submit(request, on_step)
        except Busy as error:
            raise ApiError(429, f"{error.what}; {error.remedy}", code="too_many_requests") from None

    def _read(self, place: int, step: Step) -> Delta:
        if step.error is not None:
            self._fail(step.error)
        if step.completion is not None and step.completion.reason == "cancelled":
            raise ApiError(503, "the server is ending, and stopped this answer", code="server_ending")
        answer = self.answers[place]
        before = answer.ids
        try:
            delta = answer.feed(step)
        except Exception as error:
            self._fail(error)
        self._metrics.generated(answer.ids - before)
        if place == 0 and self._on_whole is not None:
            self.ids += step.ids[: answer.ids - before]
        return delta

    def _fail(self, error: Exception) -> None:
        if isinstance(error, UserError):
            raise from_user_error(error) from error
        self._on_error(error)
        raise INTERNAL from error

    def kept(self) -> list[int]:
        """The places of the answers that are given: of each prompt's, those that were asked for."""
        per, keep = self._job.per_prompt, self._job.keep
        return [
            at + place
            for at in range(0, self.count, per)
            for place in (range(per) if keep == per else best(self.answers[at : at + per], keep))
        ]

    @property
    def generated(self) -> int:
        """Tokens of all answers so far."""
        return sum(answer.ids for answer in self.answers)

    @property
    def cached(self) -> int:
        """Prompt tokens that were there before this request: what its own other answers left does not count."""
        per = self._job.per_prompt
        groups = [self.answers[i : i + per] for i in range(0, len(self.answers), per)]
        return sum(min((a.completion.cached if a.completion else 0 for a in group), default=0) for group in groups)


async def unless_gone(work: Awaitable[T], gone: Awaitable[object]) -> T | None:
    """The work's result, or None where the caller went first: the work is then cancelled, so that nobody computes for nobody."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, left):
            one.cancel()
        await asyncio.gather(task, left, return_exceptions=True)
