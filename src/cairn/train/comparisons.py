"""Losses over answers that are compared, and the figures of a comparison. Knows numbers per answer; no model and no batch.

A is the number of answers of a batch, D of its documents, P of its pairs. All sums are over documents, in each of which pairs are meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cairn.train.preference import PreferenceConfig


@dataclass(frozen=True)
class Pairs:
    """Which answers of a batch are compared.

    Attributes:
        better_P, worse_P: the answers of each pair.
        document_P: the document of each pair.
        weight_P: one over the number of its document's pairs; 0 where the document counts for nothing.
    """

    better_P: Tensor
    worse_P: Tensor
    document_P: Tensor
    weight_P: Tensor

    @staticmethod
    def of(per_document: Sequence[int], which: Literal["best", "all"], live_D: Tensor) -> Pairs:
        """The pairs of documents with so many answers each, the best one first."""
        rows: list[tuple[int, int, int, float]] = []
        at = 0
        for document, count in enumerate(per_document):
            own = [(i, j) for i in range(count if which == "all" else 1) for j in range(i + 1, count)]
            rows += [(at + i, at + j, document, 1.0 / len(own)) for i, j in own]
            at += count
        index = torch.tensor([row[:3] for row in rows], device=live_D.device).T
        weight_P = torch.tensor([row[3] for row in rows], device=live_D.device)
        return Pairs(index[0], index[1], index[2], weight_P * live_D[index[2]].float())


def preference_losses(config: PreferenceConfig, reward_A: Tensor, pairs: Pairs) -> Tensor:
    """The loss of each pair, by all of `preference.loss` but kto.

    Args:
        config: which loss.
        reward_A: beta times each answer's log ratio; for simpo beta times its mean log-probability, for orpo beta times its log odds.
        pairs: what is compared.
    """
    margin_P = reward_A[pairs.better_P] - reward_A[pairs.worse_P]
    if config.loss == "ipo":
        # (h − 1/(2β))² of the unscaled difference h (equation 17).
        return (margin_P / config.scale - 1.0 / (2.0 * config.scale)).square()
    if config.loss == "hinge":
        return F.relu(1.0 - margin_P)
    if config.loss == "simpo":
        return -F.logsigmoid(margin_P - config.gap)
    if config.loss == "orpo":
        # The paper weighs −log σ(log odds ratio), which is not itself scaled.
        return -config.scale * F.logsigmoid(margin_P / config.scale)
    right, wrong = -F.logsigmoid(margin_P), -F.logsigmoid(-margin_P)
    if config.loss == "robust":
        return ((1.0 - config.smoothing) * right - config.smoothing * wrong) / (1.0 - 2.0 * config.smoothing)
    return (1.0 - config.smoothing) * right + config.smoothing * wrong


def kto_losses(config: PreferenceConfig, ratio_A: Tensor, mean_ratio: float, per_document: Sequence[int]) -> Tensor:
    """KTO's loss of each document: the first answer is desirable, the others are not, and each side weighs a half.

    Args:
        config: beta.
        ratio_A: each answer's log ratio to the reference.
        mean_ratio: of answers that are not their prompts', over the whole step; below zero it counts as zero (a KL is none).
        per_document: answers of each document.
    """
    above_A = config.scale * (ratio_A - max(0.0, mean_ratio))
    return torch.stack([
        0.5 * (1.0 - torch.sigmoid(own[0])) + 0.5 * (1.0 - torch.sigmoid(-own[1:])).mean() for own in above_A.split(list(per_document))
    ])  # fmt: skip


def log_odds(mean_logp_A: Tensor) -> Tensor:
    """log p/(1 − p) of the probability of a mean token (ORPO, equation 4)."""
    # A probability that rounds to 1 has infinite odds.
    capped_A = mean_logp_A.clamp(max=-1e-6)
    return capped_A - torch.log1p(-torch.exp(capped_A))


def plackett_luce(score_A: Tensor, per_document: Sequence[int]) -> Tensor:
    """−log likelihood of each document's ranking, a mean over its choices: the best of all, the best of the rest, …"""
    losses = []
    for own in score_A.split(list(per_document)):
        # One by one: torch's running sum has no deterministic form on a GPU.
        losses.append(torch.stack([own[i:].logsumexp(0) - own[i] for i in range(len(own) - 1)]).mean())
    return torch.stack(losses)


# -- figures ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pair_sums(pairs: Pairs, length_A: Tensor, by_answer: dict[str, Tensor]) -> dict[str, float]:
    """Weighted sums over pairs, from which `pair_figures` makes means: sums may be added over passes and ranks.

    Args:
        pairs: what is compared.
        length_A: targets of each answer.
        by_answer: `reward`, and whatever else is known of each answer.
    """
    weight_P, b, w = pairs.weight_P.double(), pairs.better_P, pairs.worse_P
    margin_P = (by_answer["reward"][b] - by_answer["reward"][w]).double()
    gap_P = (length_A[b] - length_A[w]).double()
    columns = {
        "pairs": torch.ones_like(weight_P), "accuracy": (margin_P > 0).double(), "margin": margin_P, "margin²": margin_P.square(),
        "gap": gap_P, "gap²": gap_P.square(), "margin·gap": margin_P * gap_P,
    }  # fmt: skip
    for name, value_A in {**by_answer, "length": length_A}.items():
        columns |= {f"{name}_chosen": value_A[b].double(), f"{name}_rejected": value_A[w].double()}
    sums = (torch.stack(list(columns.values())) * weight_P).sum(1).tolist()
    return dict(zip(columns, sums, strict=True))


def pair_figures(sums: dict[str, float]) -> dict[str, float]:
    """Means over a step's pairs out of the sums: accuracy, margin and its spread, each answer's figures apart, and how far the margin
    goes with the difference of lengths (Pearson's correlation)."""
    hidden = ("pairs", "margin²", "gap", "gap²", "margin·gap")
    mean = {name: value / sums["pairs"] for name, value in sums.items() if name != "pairs"}
    spread = math.sqrt(max(0.0, mean["margin²"] - mean["margin"] ** 2))
    apart = math.sqrt(max(0.0, mean["gap²"] - mean["gap"] ** 2))
    both = mean["margin·gap"] - mean["margin"] * mean["gap"]
    figures = {name: value for name, value in mean.items() if name not in hidden}
    # Equal lengths, or one pair: there is nothing to go with.
    correlation = both / (spread * apart) if spread * apart > 1e-12 else 0.0
    return {**figures, "margin_spread": spread, "margin_length_correlation": correlation}
