"""Several answers to one prompt: samples, the best of more, and beam search. Knows tokens only.

The prompt is computed once: samples are equal prompts to the scheduler, beams copy each other's slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.generate.engine import Engine, evaluating
from cairn.generate.request import Completion, Request
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


def beam_search(engine: Engine, request: Request, beams: int, *, n: int = 1, length_penalty: float = 1.0) -> list[tuple[Completion, float]]:
    """The likeliest answers that a search of some width finds (as transformers' `num_beams` with `early_stopping=False`).

    An answer's score is the sum of its tokens' log-probabilities over its length to the power of `length_penalty`. The search
    ends when no running beam, at its length, could enter the `beams` best ended ones. Sampling other than `max_new_tokens`,
    constraint, stop function and step calls have no place in it.

    Args:
        engine: the model; nothing else may run on it.
        request: the prompt, its stop ids and its limit.
        beams: the width.
        n: how many answers are given, at most `beams`.
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
    ended: list[tuple[float, _Beam, int | None]] = []
    with evaluating(engine.model), torch.inference_mode():
        try:
            for start in range(0, len(prompt), scheduler.chunk):
                ids = prompt[start : start + scheduler.chunk]
                [logits_TV] = runner.forward([Piece(0, ids, start, int(start + len(ids) == len(prompt)))])
            rows = [logits_TV[-1, :vocab]]
            running = [_Beam(0, 0.0, [])]
            for step in range(1, limit + 1):
                running = _extend(running, rows, beams, request.stop_ids, ended, length_penalty, last=step == limit)
                ended = sorted(ended, key=lambda e: -e[0])[:beams]
                best = max((b.score for b in running), default=-torch.inf) / step**length_penalty
                if step == limit or (len(ended) == beams and best <= ended[-1][0]):
                    break
                length = len(prompt) + step - 1
                running = _settle(runner, running, 2 * beams, length)
                rows = [logits_TV[-1, :vocab] for logits_TV in runner.forward([Piece(b.slot, b.ids[-1:], length, 1) for b in running])]
            ended += [(b.score / len(b.ids) ** length_penalty, b, None) for b in running] if step == limit else []
        finally:
            for slot in range(2 * beams):
                runner.truncate(slot, 0)
    best_first = sorted(ended, key=lambda e: -e[0])[:n]
    return [
        (Completion(b.ids, "length" if stop is None else "stop", stop, cached=0, deterministic=engine.deterministic), score)
        for score, b, stop in best_first
    ]


def _extend(
    running: Sequence[_Beam],
    rows: Sequence[Tensor],
    beams: int,
    stop_ids: frozenset[int],
    ended: list[tuple[float, _Beam, int | None]],
    length_penalty: float,
    last: bool,
) -> list[_Beam]:
    """The next running beams; those of the best ones that a stop token ends are added to `ended`."""
    scores_NV = torch.stack([row.double().log_softmax(-1) for row in rows]) + torch.tensor([[b.score] for b in running])
    vocab = scores_NV.shape[1]
    # Twice as many as beams: even if half of them end, as many as before go on. With more stop tokens, more may end.
    values, places = scores_NV.flatten().topk(min(scores_NV.numel(), beams * (1 + max(1, len(stop_ids)))))
    following: list[_Beam] = []
    for rank, (score, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
        parent, id = running[place // vocab], place % vocab
        beam = _Beam(parent.slot, score, [*parent.ids, id])
        if id in stop_ids:
            if rank < beams:
                ended.append((score / len(beam.ids) ** length_penalty, beam, id))
        elif len(following) < beams and not (last and rank >= beams):
            following.append(beam)
    return following


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
        out.append(_Beam(slot, beam.score, beam.ids))
    return out
