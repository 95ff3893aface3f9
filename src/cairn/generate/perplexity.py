"""What rounded weights cost: the perplexity of two runners over one text. Knows no tokenizer.

The text may be what the model itself says: no data is needed, and there the model is as right as it can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cairn.generate.draw import draw
from cairn.generate.runner import Piece, Runner
from cairn.ledger import seeds


@torch.inference_mode()
def logprobs(runner: Runner, ids: Sequence[int]) -> Tensor:
    """What a model expects at each place of ids[1:], T × V natural logarithms. Uses slot 0."""
    logits_TV = runner.forward([Piece(0, list(ids), 0, len(ids))])[0].float()
    runner.truncate(0, 0)
    return logits_TV[:-1].log_softmax(-1)


def perplexity(logprobs_TV: Tensor, ids: Sequence[int]) -> float:
    """exp of the mean negative log-likelihood of ids[1:]."""
    return math.exp(-float(logprobs_TV.gather(1, torch.tensor(ids[1:])[:, None]).double().mean()))


@torch.inference_mode()
def own_text(runner: Runner, first: int, tokens: int, seed: int = 0) -> list[int]:
    """What a model says when each token is drawn from its own distribution: a text on which it is as right as can be. Uses slot 0."""
    ids = [first]
    for step in range(tokens):
        logits_1V = runner.forward([Piece(0, ids[-1:], step, 1)])[0].float()
        uniform_1 = torch.tensor([seeds.uniform(seed, "own text", step)], dtype=torch.float64)
        ids.append(int(draw(logits_1V, uniform_1)))
    runner.truncate(0, 0)
    return ids


def compare(full: Runner, rounded: Runner, *, tokens: int = 512, first: int = 1, ids: Sequence[int] | None = None) -> dict[str, float]:
    """The perplexity of a model and of its rounded form.

    Args:
        full, rounded: runners of them.
        tokens: length of the text that `full` writes after the token `first`, where no `ids` are given.
        ids: a text to judge by.

    Returns:
        {"full", "rounded", "difference", "divergence"}: two perplexities, by how much the second is higher relative to the first, and
        the mean Kullback-Leibler divergence of the rounded form in nats a token, which a short text's luck moves less.
    """
    text = own_text(full, first, tokens) if ids is None else ids
    full_TV, rounded_TV = logprobs(full, text), logprobs(rounded, text)
    a, b = perplexity(full_TV, text), perplexity(rounded_TV, text)
    divergence = float((full_TV.exp() * (full_TV - rounded_TV)).double().sum(-1).mean())
    return {"full": a, "rounded": b, "difference": b / a - 1, "divergence": divergence}
