"""Distillation: the student's distribution against its teacher's at every target. Knows batches and teachers; no chat.

Divergences are computed a chunk of positions at a time through the head (`model/head.py`), so that neither side's logits are ever held
for all positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from cairn.model.head import head_of, summed
from cairn.train.config import Training
from cairn.train.forward import TorchBatch, hidden_states
from cairn.train.objectives import Base, Loss
from cairn.train.teacher import Mute, Teacher


class Objective(Base):
    """A divergence of the student from the teacher, by `DistillationConfig`."""

    targets: Literal["all", "mask", "answers"] = "mask"

    def __init__(self, training: Training | None = None) -> None:
        assert training is not None, "a distillation is told its teacher"
        assert training.distillation is not None, "a distillation is told its teacher"
        self.config = training.distillation
        self.targets = "all" if self.config.targets == "language_model" else "mask"

    def loss(self, model: Any, batch: TorchBatch) -> Loss:
        config = self.config
        assert self.teacher is not None, "the teacher is given before the first step"
        teacher: Teacher = self.teacher
        said = teacher.hear(batch, config.temperature)

        def loss_of(z_nV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            heard = said(part)
            logq_nO = heard.of_student(z_nV / config.temperature)
            apart_n = divergence(heard.logp_nO, logq_nO, config.loss, config.beta)
            nll_n = torch.nn.functional.cross_entropy(z_nV, batch.targets_N[part], reduction="none")
            best = heard.logp_nO.argmax(-1) if heard.ids_nK is None else heard.ids_nK[:, 0]
            same_n = (z_nV.detach().argmax(-1) == best).float()
            loss_n = (1.0 - config.hard) * config.temperature**2 * apart_n
            if config.hard:
                loss_n = loss_n + config.hard * nll_n
            return loss_n, torch.stack([nll_n, apart_n, same_n], -1)

        h_ND = hidden_states(model, batch).index_select(0, batch.predict_N)
        total, told_NF = summed(h_ND, head_of(model), loss_of)
        count = int(batch.predict_N.numel())
        sums = told_NF.sum(0).tolist() if count else [0.0, 0.0, 0.0]
        figures = dict(zip(("nll", "divergence", "agreement"), sums, strict=True)) | {"targets": float(count)}
        if config.hidden:
            apart = distance(h_ND, teacher.states(batch)).sum()
            total = total + config.hidden * apart
            figures["hidden"] = float(apart.detach())
        return Loss(total, count, figures, told_NF[:, 0] if count else None)

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """Means over a step's targets: the data's -log p, the divergence in nats, how often both hold the same id for the best, and the
        relative distance of hidden states where it counts."""
        return {name: value / sums["targets"] for name, value in sums.items() if name != "targets"}

    @contextmanager
    def rehearsing(self, documents: Sequence[Any]) -> Iterator[None]:
        self.teacher = Mute()
        yield
        self.teacher = None


def distance(h_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """|student - teacher|² / |teacher|² of each of N hidden states, in fp32: the same whatever the model's scale."""
    wanted_ND = teacher_ND.float()
    return (h_ND.float() - wanted_ND).square().sum(-1) / wanted_ND.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)


def divergence(logp_nO: Tensor, logq_nO: Tensor, kind: str, beta: float = 0.5) -> Tensor:
    """How far the student's distributions lie from the teacher's, in nats: over outcomes that stand for several ids a lower bound.

    Args:
        logp_nO: the teacher's log-probabilities of O outcomes at n positions.
        logq_nO: the student's.
        kind: forward, Σ p (log p - log q); reverse, Σ q (log q - log p); jsd, beta KL(p||m) + (1 - beta) KL(q||m) with
            m = beta p + (1 - beta) q.
        beta: of jsd.
    """
    if kind == "forward":
        return (logp_nO.exp() * (logp_nO - logq_nO)).sum(-1)
    if kind == "reverse":
        return (logq_nO.exp() * (logq_nO - logp_nO)).sum(-1)
    logm_nO = torch.logaddexp(logp_nO + math.log(beta), logq_nO + math.log1p(-beta))
    ours = (logq_nO.exp() * (logq_nO - logm_nO)).sum(-1)
    return beta * (logp_nO.exp() * (logp_nO - logm_nO)).sum(-1) + (1.0 - beta) * ours
