"""Several answers to one prompt: samples, the best of more, and beam search. Knows tokens only.

The prompt is computed once: samples are equal prompts to the scheduler, beams copy each other's slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.generate.engine import Engine, evaluating
from cairn.generate.matcher import Matcher
from cairn.generate.request import Completion, Reason, Request
from cairn.generate.runner import Piece, Runner


def expand(request: Request, n: int) -> list[Request]:
    """The requests of `n` samples, each with its own stream of draws. A stop function with a state must not be shared among them."""
    return [replace(request, sample=request.sample + i) for i in range(n)]


def samples(engine: Engine, request: Request, n: int, best_of: int | None = None) -> list[Completion]:
    """`n` answers to a prompt.

    Args:
        engine: the model.
        request: the prompt; with `best_of`, log-probabilities come with the answers.
        n: how many are wanted.
        best_of: how many are generated; the likeliest `n` are given, likeliest first.

    Raises:
        UserError: `best_of` below `n`, or a request that cannot be run.
    """
    count = n if best_of is None else best_of
    if n < 1 or count < n:
        raise UserError(f"{n} of {count} answers cannot be given", where="best_of", remedy="ask for at least one, of at least as many")
    if best_of is not None and request.logprobs is None:
        request = replace(request, logprobs=0)
    completions = engine.generate(expand(request, count))
    return completions if best_of is None else likeliest(completions)[:n]


def likeliest(completions: Sequence[Completion]) -> list[Completion]:
    """The completions by the mean log-probability of their tokens, highest first; equals keep their order."""

    def mean(completion: Completion) -> float:
        if completion.logprobs is None:
            raise ValueError("answers are ranked by their log-probabilities, which this one lacks")
        return sum(entry.logprob for entry in completion.logprobs) / max(1, len(completion.logprobs))

    return sorted(completions, key=lambda c: -mean(c))


@dataclass
class _Beam:
    slot: int
    score: float
    ids: list[int]
    matcher: Matcher | None

    def allowed(self, left: int) -> Tensor | None:
        """What its constraint allows next, of which one id at least is accepted."""
        while self.matcher is not None:
            mask_V = self.matcher.allowed(left)
            if mask_V is None or int(mask_V.sum()) != 1 or self.follow(int(mask_V.nonzero()), left) is not None:
                return mask_V
        return None

    def follow(self, id: int, left: int) -> Matcher | None:
        """Its constraint behind an id, or None where that refuses the id; `allowed` leaves it out then."""
        assert self.matcher is not None
        trial = self.matcher.fork()
        if trial.accept(id, left):
            return trial
        self.matcher = trial
        return None


@dataclass
class _Ended:
    score: float
    beam: _Beam
    reason: Reason
    stop_id: int | None


def beam_search(engine: Engine, request: Request, beams: int, *, n: int = 1, length_penalty: float = 1.0) -> list[tuple[Completion, float]]:
    """The likeliest answers that a search of some width finds (as transformers' `num_beams` with `early_stopping=False`).

    An answer's score is the sum of its tokens' log-probabilities over its length to the power of `length_penalty`. The search
    ends when no running beam, at its length, could enter the `beams` best ended ones. A constraint leaves beams out and changes no score.
    Sampling other than `max_new_tokens`, stop function and step calls have no place in it.

    Args:
        engine: the model; nothing else may run on it.
        request: the prompt, its stop ids and its limit.
        beams: the width.
        n: how many answers are given, at most `beams`; fewer where a constraint has no more.
        length_penalty: above 0 favours longer answers.

    Raises:
        UserError: more beams than the engine has places, or `n` above `beams`.
    """
    engine.check(request)
    scheduler = engine.scheduler
    if not scheduler.idle:
        raise UserError("the engine answers other requests", remedy="search with an engine of its own")
    if not 1 <= n <= beams or 2 * beams > engine.max_batch:
        remedy = f"give at most {engine.max_batch // 2} beams and ask for no more answers than beams"
        raise UserError(f"{beams} beams for {n} answers do not fit", where="beams", remedy=remedy)
    limit, prompt = engine.limit(request), list(request.ids)
    runner, vocab = scheduler.runner, scheduler.vocab
    if 2 * beams * runner.cost(len(prompt) + limit - 1) > engine.max_batch_tokens:
        raise UserError("the beams do not fit into the token budget", where="beams", remedy="fewer beams, fewer tokens or a larger budget")
    scheduler.forget()
    ended: list[_Ended] = []
    with evaluating(engine.model), torch.inference_mode():
        try:
            for start in range(0, len(prompt), scheduler.chunk):
                ids = prompt[start : start + scheduler.chunk]
                [logits_TV] = runner.forward([Piece(0, ids, start, int(start + len(ids) == len(prompt)))])
            rows = [logits_TV[-1, :vocab]]
            running = [_Beam(0, 0.0, [], None if request.constraint is None else request.constraint())]
            for step in range(1, limit + 1):
                running = _extend(running, rows, beams, request.stop_ids, ended, length_penalty, left=limit - step + 1)
                ended = sorted(ended, key=lambda e: -e.score)[:beams]
                best = max((b.score for b in running), default=-torch.inf) / step**length_penalty
                if step == limit or not running or (len(ended) == beams and best <= ended[-1].score):
                    break
                length = len(prompt) + step - 1
                running = _settle(runner, running, 2 * beams, length)
                rows = [logits_TV[-1, :vocab] for logits_TV in runner.forward([Piece(b.slot, b.ids[-1:], length, 1) for b in running])]
            ended += [_Ended(b.score / len(b.ids) ** length_penalty, b, "length", None) for b in running] if step == limit else []
        finally:
            for slot in range(2 * beams):
                runner.truncate(slot, 0)
    return [
        (Completion(e.beam.ids, e.reason, e.stop_id, cached=0, deterministic=engine.deterministic), e.score)
        for e in sorted(ended, key=lambda e: -e.score)[:n]
    ]


def _extend(
    running: Sequence[_Beam],
    rows: Sequence[Tensor],
    beams: int,
    stop_ids: frozenset[int],
    ended: list[_Ended],
    length_penalty: float,
    left: int,
) -> list[_Beam]:
    """The next running beams; those of the best ones that a stop token or their constraint ends are added to `ended`."""
    masks = [beam.allowed(left) for beam in running]
    scores_NV = torch.stack([_masked(row.double().log_softmax(-1), mask_V) for row, mask_V in zip(rows, masks, strict=True)])
    scores_NV += torch.tensor([[b.score] for b in running])
    vocab = scores_NV.shape[1]
    # Twice as many as beams: even if half of them end, as many as before go on. With more stop tokens, more may end.
    most, rank = beams * (1 + max(1, len(stop_ids))), 0
    following: list[_Beam] = []
    for score, place in _descending(scores_NV.flatten(), most):
        parent, id = running[place // vocab], place % vocab
        mask_V, matcher = masks[place // vocab], None
        if parent.matcher is not None:
            if mask_V is not None and not mask_V[id]:
                continue  # left out since a refusal
            matcher = parent.follow(id, left)
            if matcher is None:
                masks[place // vocab] = parent.allowed(left)
                continue
        beam, rank = _Beam(parent.slot, score, [*parent.ids, id], matcher), rank + 1
        if id in stop_ids or (matcher is not None and matcher.finished):
            if rank <= beams:
                ended.append(_Ended(score / len(beam.ids) ** length_penalty, beam, "stop", id if id in stop_ids else None))
        elif len(following) < beams and not (left == 1 and rank > beams):
            following.append(beam)
        if rank == most or (rank >= beams and len(following) == beams):
            break
    return following


def _masked(scores_V: Tensor, mask_V: Tensor | None) -> Tensor:
    if mask_V is None:
        return scores_V
    known = min(len(mask_V), len(scores_V))
    masked_V = torch.full_like(scores_V, -torch.inf)
    masked_V[:known] = torch.where(mask_V[:known].to(scores_V.device), scores_V[:known], -torch.inf)
    return masked_V


def _descending(scores_M: Tensor, first: int) -> Iterator[tuple[float, int]]:
    """(score, place) of all possible ones from the best on; `first` are looked for at first."""
    given, many = 0, min(first, len(scores_M))
    while given < many:
        values, places = (found.tolist()[given:] for found in scores_M.topk(many))
        for value, place in zip(values, places, strict=True):
            if value == -math.inf:
                return
            yield value, place
        given, many = many, min(8 * many, len(scores_M))


def _settle(runner: Runner, running: Sequence[_Beam], slots: int, length: int) -> list[_Beam]:
    """Give every beam a slot of its own: the first child of a beam keeps its parent's, others get a copy."""
    parents, taken = {b.slot for b in running}, set[int]()
    free = [slot for slot in range(slots) if slot not in parents]
    out = []
    for beam in running:
        slot = beam.slot
        if slot in taken:
            slot = free.pop(0)
            runner.copy(beam.slot, slot, length)
        taken.add(slot)
        out.append(_Beam(slot, beam.score, beam.ids, beam.matcher))
    return out
