"""Logits to token ids: pure functions on tensors, one row a request. Knows no model, no text and no random generator.

A draw inverts the cumulative distribution, in float64 and in order of the ids, at a number in [0, 1) that the caller
computes: the same logits and the same number give the same token, on every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cairn.generate.sampling import Sampling

NOT_FINITE = -1
"""The id given for a row whose logits hold NaN, or no finite value at all: the caller must not go on with such a model."""


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Make the tokens marked in `seen_BV` less likely (Keskar et al. 2019: divide where positive, multiply where negative)."""
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def truncate(logits_BV: Tensor, top_k_B1: Tensor, top_p_B1: Tensor, min_p_B1: Tensor) -> Tensor:
    """Set the logits of tokens outside of top-k, top-p and min-p to minus infinity. The likeliest token always stays.

    Each filter sees the distribution that the one before it left, renormalised. Equal logits rank by id.
    """
    ranked_BV, ids_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    keep_BV = (rank_V < top_k_B1) | (top_k_B1 == 0)
    p_BV = ranked_BV.masked_fill(~keep_BV, -torch.inf).softmax(-1)
    before_BV = p_BV.cumsum(-1) - p_BV
    keep_BV &= (before_BV < top_p_B1) | (top_p_B1 >= 1.0)
    keep_BV &= p_BV >= min_p_B1 * p_BV[:, :1]
    keep_BV[:, 0] = True
    kept_BV = torch.zeros_like(keep_BV).scatter_(-1, ids_BV, keep_BV)
    return logits_BV.masked_fill(~kept_BV, -torch.inf)


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """One id a row: the first whose cumulative probability passes the row's number in [0, 1)."""
    cumulative_BV = logits_BV.double().softmax(-1).cumsum(-1)
    # The sum is 1 up to rounding; with at most 53 bits below 1 the product stays under it, so some id always passes.
    target_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]


def likeliest(rows: Sequence[Tensor]) -> list[int]:
    """The id of the largest logit of every row, the lowest of equals; `NOT_FINITE` where it is no finite number."""
    if not rows[0].is_cpu:
        best_B, ids_B = torch.stack(list(rows)).max(-1)
        return torch.where(best_B.isfinite(), ids_B, NOT_FINITE).tolist()
    # torch's own search for a place takes 20 µs for 32k logits, numpy's 2. Both give the first NaN where there is one.
    found = [(row, int((row.float() if row.dtype in HALF else row).numpy().argmax())) for row in rows]
    return [id if math.isfinite(row[id]) else NOT_FINITE for row, id in found]


HALF = (torch.bfloat16, torch.float16)
"""What numpy does not know, or is slow with."""


class Chooser:
    """The samplings of the rows of one batch, as tensors; draws the next id of every row.

    Args:
        samplings: one a row, none of them greedy.
        device: where the logits will be.
    """

    def __init__(self, samplings: Sequence[Sampling], device: torch.device | str = "cpu") -> None:
        def column(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([[getattr(s, name)] for s in samplings], dtype=dtype, device=device)

        self._temperature_B1 = column("temperature", torch.float64)
        self._top_k_B1 = column("top_k", torch.int64)
        self._top_p_B1 = column("top_p", torch.float64)
        self._min_p_B1 = column("min_p", torch.float64)
        self._truncates = any(s.top_k or s.top_p < 1.0 or s.min_p for s in samplings)

    def choose(self, logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """The next id of every row, or `NOT_FINITE`.

        Args:
            logits_BV: as the model gave them or `Choice` changed them, any float type.
            uniform_B: numbers in [0, 1), float64.
        """
        scaled_BV = logits_BV.double() / self._temperature_B1
        if self._truncates:
            scaled_BV = truncate(scaled_BV, self._top_k_B1, self._top_p_B1, self._min_p_B1)
        return torch.where(logits_BV.amax(-1).isfinite(), draw(scaled_BV, uniform_B), NOT_FINITE)
