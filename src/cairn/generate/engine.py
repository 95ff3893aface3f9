"""The engine: token ids in, token ids out, for any transformers causal language model. Knows no text, chat or HTTP.

A scheduler lets requests join and leave a running batch at every step; a runner holds the model and its caches. Here both are
put together, requests are checked, and answers are collected.

A draw is a function of (sampling seed, request's stream, step), never of a generator. Logits of a row differ in the last
bits with the shape of its batch, so a near tie may fall otherwise in other company: of 200 answers of 40 tokens of a random
model with 0.5 M parameters none did in float32 and 68 did in bfloat16. `deterministic=True` leaves nothing to depend on: every
sequence runs by itself, cut at fixed places. That costs most of what batching gains, so it is off unless asked for. The compiled
forward (`fast`) is deterministic as it is, and free. Every completion says which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from cairn.errors import UserError
from cairn.generate.hf_runner import HfRunner
from cairn.generate.job import Job
from cairn.generate.request import Completion, Logprob, Reason, Request, Step
from cairn.generate.runner import Runner
from cairn.generate.scheduler import Scheduler
from cairn.model.context import context_length

__all__ = ["Completion", "Engine", "Logprob", "Reason", "Request", "Step"]


class Engine:
    """Continues prompts with a model. Used by one thread at a time; `Worker` makes it one for many.

    Args:
        model: a transformers causal language model.
        max_batch: requests that run together at most.
        max_batch_tokens: prompt and answer tokens (padding counted) that are held together at most; bounds the cache's memory.
            Requests wait for their place. A single request above it runs alone.
        vocab_size: ids from here on are never chosen (rows that pad the model's head beyond the tokenizer's vocabulary).
        deterministic: an answer's bytes cannot depend on its company.
        chunk: prompt tokens that are computed in one step, beside running answers.
        keep: keep the prefixes of ended requests while nothing runs. For models whose weights do not change.
        runner: makes what runs the model, given it, the number of slots and whether every piece must run by itself.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_batch: int = 64,
        max_batch_tokens: int = 32768,
        vocab_size: int | None = None,
        deterministic: bool = False,
        chunk: int = 512,
        keep: bool = False,
        runner: Callable[[Any, int, bool], Runner] | None = None,
    ) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise UserError("the model has an encoder; only causal language models generate here", remedy="give a decoder-only model")
        self.model = model
        self.max_batch = max_batch
        self.max_batch_tokens = max_batch_tokens
        self._alone = deterministic
        self.rows = int(model.get_input_embeddings().weight.shape[0])
        self.vocab_size = vocab_size
        self.context: int | None = context_length(model.config)
        self._chunk, self._keep = chunk, keep
        self._make_runner = runner or (lambda model, slots, alone: HfRunner(model, slots, alone=alone))
        self._scheduler: Scheduler | None = None

    @property
    def scheduler(self) -> Scheduler:
        """What runs the requests; made with its runner when first asked for, for that tries the model."""
        if self._scheduler is None:
            with evaluating(self.model):
                runner = self._make_runner(self.model, self.max_batch, self._alone)
            self._scheduler = Scheduler(
                runner,
                vocab=self.rows if self.vocab_size is None else self.vocab_size,
                most=self.max_batch,
                budget=self.max_batch_tokens,
                chunk=self._chunk,
                deterministic=self._alone,
                keep=self._keep,
            )
        return self._scheduler

    @property
    def deterministic(self) -> bool:
        """Whether an answer's bytes are the same in any company: asked for, or given free by what runs the model."""
        return self.scheduler.deterministic

    def ready(self) -> None:
        """Make what runs the model now, not at the first request: it may compile, try the model, and refuse."""
        assert self.scheduler

    def check(self, request: Request) -> None:
        """Refuse a request that the model cannot run.

        Raises:
            UserError: an empty prompt, an id outside of the vocabulary, or a prompt longer than the model's context.
        """
        where = f"request {request.index}"
        if not request.ids:
            raise UserError("the prompt has no token", where=where, remedy="begin it with the tokenizer's first token or some text")
        if min(request.ids) < 0 or max(request.ids) >= self.rows:
            bad = next(i for i in request.ids if not 0 <= i < self.rows)
            raise UserError(
                f"the prompt holds id {bad}, the model knows 0 to {self.rows - 1}", where=where, remedy="use the model's own tokenizer"
            )
        if self.context is not None and len(request.ids) > self.context:
            raise UserError(
                f"the prompt has {len(request.ids)} tokens, the model's context holds {self.context}",
                where=where,
                remedy="shorten the prompt, or begin a new conversation",
            )

    def limit(self, request: Request) -> int:
        """How many tokens the request may generate: its own limit, or what the model's context leaves (the last token needs no place)."""
        most = request.sampling.max_new_tokens
        return most if self.context is None else min(most, self.context - len(request.ids) + 1)

    def generate(
        self,
        requests: Sequence[Request],
        on_progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Answer all requests; the answers stand in the order of the requests.

        In which order they run, and so in what company, hangs on the requests alone and not on the order in which they are given.

        Args:
            requests: any number, of any lengths.
            on_progress: called after every step with (finished requests, tokens generated).
            cancelled: asked before every step; once true, what is not finished ends with reason "cancelled".

        Raises:
            UserError: see `check`, nothing is run then; or what ended a request in place of an answer.
        """
        for request in requests:
            self.check(request)
        scheduler = self.scheduler
        if scheduler.idle:
            scheduler.forget()  # what was asked before must have no say in the last bits
        order = sorted(range(len(requests)), key=lambda i: _place(requests[i]))
        jobs = {i: scheduler.submit(requests[i], self.limit(requests[i])) for i in order}
        open_jobs, tokens = list(jobs.values()), 0
        with evaluating(self.model):  # once, not at every step: a large model has hundreds of parts to tell
            try:
                while open_jobs and not (cancelled and cancelled()):
                    tokens += self._step()
                    open_jobs = [job for job in open_jobs if not _ended(job)]
                    if on_progress:
                        on_progress(len(jobs) - len(open_jobs), tokens)
            finally:
                self._cancel(open_jobs)
        return [_completion(jobs[i]) for i in range(len(requests))]

    def stream(self, request: Request, cancelled: Callable[[], bool] | None = None) -> Generator[int, None, Completion]:
        """Yield the ids of one answer as they come; the generator's value is the completion."""
        self.check(request)
        job = self.scheduler.submit(request, self.limit(request))
        given = 0
        try:
            while not _ended(job) and not (cancelled and cancelled()):
                self._step()
                while given < len(job.answer):
                    yield job.answer[given]
                    given += 1
        finally:
            self._cancel([job])
        return _completion(job)

    def _step(self) -> int:
        with evaluating(self.model):
            try:
                return self.scheduler.step()
            except BaseException:
                self.scheduler.reset()  # slots are in no known state after half a step
                raise

    def _cancel(self, jobs: Sequence[Job]) -> None:
        """End what has not ended; its places are free afterwards."""
        for job in jobs:
            if not job.done:
                self.scheduler.cancel(job)
        self.scheduler.sweep()


def _place(request: Request) -> tuple[int, int, int, tuple[int, ...]]:
    return len(request.ids), request.index, request.sample, tuple(request.ids)


def _ended(job: Job) -> bool:
    if job.error is not None:
        raise job.error
    return job.done


def _completion(job: Job) -> Completion:
    assert job.completion is not None
    return job.completion


class evaluating:
    """Puts the model into evaluation mode for a while (dropout off) and back afterwards."""

    def __init__(self, model: Any) -> None:
        self._model, self._training = model, model.training

    def __enter__(self) -> None:
        if self._training:
            self._model.eval()

    def __exit__(self, *_: object) -> None:
        if self._training:
            self._model.train()
