"""Continuous batching: which request runs when, in which slot, on whose prefix. Knows no model (a `Runner` does) and no text.

At every step requests may join and leave. Prompts are computed in chunks beside running answers, so that a long prompt
holds up no answer for longer than a chunk takes. A prompt that begins like a sequence in another slot, running or ended, copies
that beginning; one whose beginning is just being computed waits for it. A request is admitted when its longest possible sequence
fits into the token budget beside all others: nothing is ever taken back from a running request.

In deterministic mode a request's arithmetic hangs on itself alone: its prompt is cut at fixed places, a prefix is shared up to
such a place only (or whole, logits included, by an equal prompt), and the runner runs pieces one by one. A runner whose logits do
not depend on what runs beside them (`FastRunner.invariant`) needs none of this: its answers are deterministic at no cost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from cairn.generate.choice import Choice
from cairn.generate.draw import NOT_FINITE, Chooser, likeliest
from cairn.generate.job import Job
from cairn.generate.request import Request
from cairn.generate.runner import Piece, Runner
from cairn.ledger import seeds

LEAST_SHARED = 8
"""A shared beginning of fewer tokens is computed again: that costs less than its copy."""

LOOK_AHEAD = 64
"""Waiting requests that are looked at in one step: those behind one that waits for a prefix may pass it."""


class Scheduler:
    """Runs requests on a runner.

    Args:
        runner: the model.
        vocab: ids from here on are never chosen.
        most: requests that run together at most.
        budget: tokens that slots may hold together, as the runner counts their cost. One request above it runs alone.
        chunk: prompt tokens that are computed in one step.
        deterministic: see above; the runner must run pieces by themselves then, unless it is invariant.
        keep: ended sequences stay as prefixes when nothing runs, as long as their place is not needed. For models whose weights
            do not change.
    """

    def __init__(
        self, runner: Runner, *, vocab: int, most: int, budget: int, chunk: int = 512, deterministic: bool = False, keep: bool = False
    ) -> None:
        self.runner, self.vocab, self.most, self.budget = runner, vocab, min(most, runner.slots), budget
        self.chunk, self.keep = chunk, keep
        invariant = bool(getattr(runner, "invariant", False))
        self.deterministic = deterministic or invariant
        """Whether an answer's bytes are the same in any company."""
        self._alone = deterministic and not invariant
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.counts = {"requests": 0, "prompt_tokens": 0, "cached_tokens": 0, "tokens": 0, "steps": 0}
        self._free = list(range(runner.slots))[::-1]
        self._resting: dict[int, list[int]] = {}
        """Slot: the tokens that it holds since its request ended. The one that was used last stands last."""
        self._chooser: tuple[list[Job], Chooser] | None = None
        self._cancelling = False

    def submit(self, request: Request, limit: int) -> Job:
        """Queue a request that may generate `limit` tokens."""
        job = Job(request, limit, self.deterministic)
        self.waiting.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """End a request before the next step; may be called from any thread."""
        job.cancelled = self._cancelling = True

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.waiting and not self.running

    @property
    def resting(self) -> int:
        """How many prefixes of ended requests are kept."""
        return len(self._resting)

    @torch.inference_mode()
    def step(self) -> int:
        """Let requests join, run the model once over all that run, choose tokens, let requests leave.

        Returns:
            How many tokens were generated.

        Raises:
            Exception: what the model raised; `reset` must follow.
        """
        self.sweep()
        self._admit()
        pieces, jobs = self._pieces()
        if not pieces:
            self._rest_or_forget()
            return 0
        self.counts["steps"] += 1
        logits = self.runner.forward(pieces)
        for job, piece in zip(jobs, pieces, strict=True):
            job.held = piece.start + len(piece.ids)
        ready = [(job, rows_TV[-1, : self.vocab]) for job, piece, rows_TV in zip(jobs, pieces, logits, strict=True) if piece.wanted]
        for job, logits_V in list(ready):
            if not job.answer:
                ready += [(twin, logits_V) for twin in self._twins(job)]
        tokens = self._choose(ready) if ready else 0
        self._release()
        self._rest_or_forget()
        return tokens

    def reset(self, error: Exception | None = None) -> None:
        """End everything: with an error, or as cancelled. No prefix is kept."""
        jobs = [*self.running, *self.waiting]
        self.running, self._chooser = [], None
        self.waiting.clear()
        for job in jobs:
            self._free_slot(job)
            if job.done:
                continue
            if error is None:
                job.cancel()
            else:
                job.fail(error)
        self.forget()

    @torch.inference_mode()
    def confirm(self, prompt: Sequence[int], answer: Sequence[int], margin: float) -> bool:
        """Whether every id of an answer is the greedy choice behind a prompt and the ids before it; false too where there is no room.

        Called between steps. Costs about what a prompt of that length does.

        Args:
            prompt, answer: at least one id each.
            margin: by how much each id's logit must beat the next where company could matter to the last bits; without effect in a
                deterministic engine, whose choice is the very one.
        """
        ids = [*prompt, *answer[:-1]]
        needed = self.runner.cost(len(ids)) + sum(self.runner.cost(job.total) for job in self.running)
        if len(ids) > self.runner.capacity or needed > self.budget:
            return False
        for slot in list(self._resting):
            if self._free and needed + sum(self.runner.cost(len(held)) for held in self._resting.values()) <= self.budget:
                break
            self._evict(slot)
        if not self._free:
            return False
        slot = self._free.pop()
        try:
            [logits_TV] = self.runner.forward([Piece(slot, ids, 0, len(answer))])
            values_T2, places_T2 = logits_TV[:, : self.vocab].float().topk(2)
            beaten_T = values_T2[:, 0] - values_T2[:, 1] > (0.0 if self.deterministic else margin)
            return bool((beaten_T & (places_T2[:, 0] == torch.tensor(list(answer), device=places_T2.device))).all())
        finally:
            self.runner.truncate(slot, 0)
            self._free.append(slot)

    def forget(self) -> None:
        """Drop the prefixes of ended requests."""
        for slot in list(self._resting):
            self._evict(slot)

    # --- joining

    def _admit(self) -> None:
        """Give waiting requests slots, in their order, as long as slots and budget last."""
        looked: list[Job] = []
        while self.waiting and len(looked) < LOOK_AHEAD:
            job = self.waiting.popleft()
            source, shared, wait = self._prefix(job)
            if wait:
                looked.append(job)
            elif not self._join(job, source, shared):
                looked.append(job)
                break
        self.waiting.extendleft(reversed(looked))

    def _join(self, job: Job, source: int | None, shared: int) -> bool:
        """Give a request a slot that begins with `shared` tokens of the slot `source`; false where there is no place yet."""
        if len(self.running) >= self.most:
            return False
        needed = self.runner.cost(job.total) + sum(self.runner.cost(j.total) for j in self.running)
        if needed > self.budget and self.running:
            return False
        for slot in list(self._resting):
            fits = needed + sum(self.runner.cost(len(ids)) for s, ids in self._resting.items() if s != source) <= self.budget
            if fits and self._free:
                break
            if slot != source:
                self._evict(slot)
        held = self._resting.get(source) if source is not None else None
        # All that rests, the source beside the copy of its beginning.
        kept = needed + sum(self.runner.cost(len(ids)) for ids in self._resting.values())
        if held is not None and (len(held) == shared or not self._free or kept > self.budget):
            assert source is not None
            # Nothing is lost, or there is no place for two: the ended sequence's slot itself goes on.
            del self._resting[source]
            self.runner.truncate(source, shared)
            job.slot = source
        else:
            job.slot = self._free.pop()
            if source is not None and shared:
                self.runner.copy(source, job.slot, shared)
                if held is not None:
                    self._resting[source] = self._resting.pop(source)
        job.held = job.cached = shared
        self._started(job)
        return True

    def _started(self, job: Job) -> None:
        self.running.append(job)
        self.counts["requests"] += 1
        self.counts["prompt_tokens"] += len(job.prompt)
        self.counts["cached_tokens"] += job.cached

    def _prefix(self, job: Job) -> tuple[int | None, int, bool]:
        """The slot that shares the longest beginning with a prompt, its length, and whether a longer one is being computed now."""
        best, source, coming = 0, None, 0
        most = len(job.prompt) - 1  # the last token's logits are needed
        for slot, ids in self._resting.items():
            # What an answer's steps computed differs in its last bits from what a prompt's chunks would.
            shared = self._cut(min(common(job.prompt, ids), most))
            if shared > best:
                best, source = shared, slot
        for other in self.running:
            planned = min(common(job.prompt, other.prompt), most)
            shared = self._cut(min(planned, other.held))
            if shared > best and other.slot is not None:
                best, source = shared, other.slot
            if other.held < len(other.prompt):
                equal = planned == most and job.prompt == other.prompt
                coming = max(coming, planned if equal else self._cut(planned))
        best, source = (best, source) if best >= LEAST_SHARED else (0, None)
        return source, best, coming >= best + LEAST_SHARED

    def _cut(self, shared: int) -> int:
        return shared - shared % self.chunk if self._alone else shared

    def _twins(self, job: Job) -> list[Job]:
        """Requests with the prompt that a job has just computed: they join with a copy of it, and share its logits."""
        twins: list[Job] = []
        for other in [j for j in islice(self.waiting, 4 * LOOK_AHEAD) if j.prompt == job.prompt]:
            assert job.slot is not None
            if not self._join(other, None, 0):
                break
            assert other.slot is not None
            self.waiting.remove(other)
            self.runner.copy(job.slot, other.slot, job.held)
            other.held, other.cached = job.held, len(other.prompt)
            self.counts["cached_tokens"] += other.cached
            twins.append(other)
        return twins

    # --- running

    def _pieces(self) -> tuple[list[Piece], list[Job]]:
        """Every answer's last token and those forced behind it, and the next chunks of prompts, oldest first."""
        pieces, jobs, left = [], [], self.chunk
        for job in self.running:
            if job.held >= len(job.prompt):
                most = job.length - job.held
            elif self._alone:
                most = self.chunk - job.held % self.chunk
                if left <= 0:
                    continue
            else:
                most = left
            if most > 0:
                piece = job.piece(most)
                left -= 0 if job.answer else len(piece.ids)
                pieces.append(piece)
                jobs.append(job)
        return pieces, jobs

    def _choose(self, ready: list[tuple[Job, Tensor]]) -> int:
        """Choose the next token of every request whose logits are there; gives how many tokens that and what is forced behind them are."""
        chosen: list[tuple[Job, Tensor, Tensor]] = []
        for job, logits_V in ready:
            try:
                if job.choice is None:
                    job.choice = Choice(job.request, len(logits_V), logits_V.device)
                choice = job.choice
                adjusted_V = choice.adjust(logits_V, job.left) if choice.adjusts else logits_V
                chosen.append((job, logits_V, adjusted_V))
            except Exception as error:
                job.fail(error)
        before = sum(len(job.answer) for job, _, _ in chosen)
        greedy = [item for item in chosen if item[0].request.sampling.greedy]
        drawn = [item for item in chosen if not item[0].request.sampling.greedy]
        for group in [greedy, *([[item] for item in drawn] if self._alone else [drawn])]:
            if not group:
                continue
            rows = [adjusted_V for _, _, adjusted_V in group]
            ids = likeliest(rows) if group is greedy else self._drawn([job for job, _, _ in group], rows)
            for (job, logits_V, _), id in zip(group, ids, strict=True):
                try:
                    job.take(self._accepted(job, id, logits_V), logits_V)
                    job.take_forced()
                except Exception as error:
                    job.fail(error)
        tokens = sum(len(job.answer) for job, _, _ in chosen) - before
        self.counts["tokens"] += tokens
        return tokens

    def _accepted(self, job: Job, id: int, logits_V: Tensor) -> int:
        """The id, or the one chosen in its place where the constraint refuses it: from what is left, and drawn at another number."""
        assert job.choice is not None
        sampling, refused = job.request.sampling, list[int]()
        if job.choice.wary and sampling.greedy and id != NOT_FINITE:
            id = job.choice.best(logits_V, job.left)
        while id != NOT_FINITE and not job.choice.accept(id, job.left):
            if refused.count(id) > 1:  # once as a guess that it did not allow is no fault
                # Or a constraint that breaks its word would hold up all other requests for ever.
                raise RuntimeError(f"the constraint of request {job.request.index} refuses id {id} and allows it again")
            refused.append(id)
            if sampling.greedy:
                id = job.choice.best(logits_V, job.left)
                continue
            adjusted_V = job.choice.adjust(logits_V, job.left)
            number = seeds.uniform(sampling.seed, f"{job.request.stream}/refused {len(refused)}", len(job.answer))
            uniform_B = torch.tensor([number], dtype=torch.float64, device=adjusted_V.device)
            id = int(Chooser([sampling], adjusted_V.device).choose(adjusted_V[None], uniform_B))
        return id

    def _drawn(self, jobs: list[Job], rows: list[Tensor]) -> list[int]:
        """An id for every request, drawn from its row of logits."""
        device = rows[0].device
        if self._chooser is None or self._chooser[0] != jobs:
            self._chooser = (jobs, Chooser([j.request.sampling for j in jobs], device))
        double = any(row.dtype == torch.float64 for row in rows)
        numbers = [seeds.uniform(j.request.sampling.seed, j.request.stream, len(j.answer)) for j in jobs]
        logits_BV = torch.stack([row.double() for row in rows] if double else rows)
        ids: list[int] = self._chooser[1].choose(logits_BV, torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()
        return ids

    # --- leaving

    @torch.inference_mode()
    def sweep(self) -> None:
        """End the requests that were cancelled, without a step."""
        if not self._cancelling:
            return
        self._cancelling = False
        for job in [j for j in (*self.running, *self.waiting) if j.cancelled and not j.done]:
            job.cancel()
        self.waiting = deque(j for j in self.waiting if not j.done)
        self._release()
        self._rest_or_forget()

    def _release(self) -> None:
        """Take the slots of ended requests; what they hold stays for prompts that begin alike."""
        for job in [j for j in self.running if j.done]:
            self.running.remove(job)
            slot, job.slot = job.slot, None
            assert slot is not None
            held = job.prompt + job.answer
            usable = self._cut(min(job.held, len(job.prompt))) if self._alone else job.held
            self.runner.truncate(slot, usable)
            self._resting[slot] = held[:usable]
            if job.error is not None or usable < LEAST_SHARED or self.runner.cost(usable) > self.budget:
                self._evict(slot)

    def _rest_or_forget(self) -> None:
        """Without `keep`, no prefix outlives the requests: the weights may be others when the next ones come."""
        if self.idle and not self.keep:
            self.forget()

    def _evict(self, slot: int) -> None:
        del self._resting[slot]
        self.runner.truncate(slot, 0)
        self._free.append(slot)

    def _free_slot(self, job: Job) -> None:
        if job.slot is not None:
            self.runner.truncate(job.slot, 0)
            self._free.append(job.slot)
            job.slot = None


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    low, high = 0, min(len(a), len(b))
    if not high or a[0] != b[0]:
        return 0
    while low < high:  # slices compare fast: halve the place where they first differ
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
