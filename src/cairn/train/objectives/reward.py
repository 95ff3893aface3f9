"""Reward models: one number for a prompt and an answer, learnt from which answers people preferred. Knows batches; no chat.

The model is transformers' sequence classifier of the family with one label, so that what is saved is loaded by everybody.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cairn.model.reward import rewards_at
from cairn.train.comparisons import Pairs, pair_figures, pair_sums, plackett_luce
from cairn.train.config import Training
from cairn.train.forward import TorchBatch, hidden_states
from cairn.train.objectives import Base, Loss
from cairn.train.preference import RULES, RewardConfig


class Objective(Base):
    """Rewards of a prompt's answers in the order of their ranks; the loss is a mean over prompts."""

    targets: Literal["all", "mask", "answers"] = "answers"
    rules = RULES
    head = "reward"

    def __init__(self, training: Training | None = None) -> None:
        self.config = (training.reward if training is not None else None) or RewardConfig()

    def count(self, batch: Any) -> int:
        return len(batch.doc_lengths)

    def measure(self, model: Any, batch: TorchBatch) -> Tensor:
        return rewards_at(model, hidden_states(model, batch), batch.ids_T, batch.ends_A)

    def loss(self, model: Any, batch: TorchBatch) -> Loss:
        config = self.config
        reward_A = self.measure(model, batch)
        live_D = (torch.bincount(batch.document_N, minlength=len(batch.answers)) > 0).float()
        pairs = Pairs.of(batch.per_document, "all", live_D)
        if config.loss == "plackett_luce":
            total = (plackett_luce(reward_A, batch.per_document) * live_D).sum()
        else:
            margins = batch.margins if config.margin == "rows" else [float(config.margin)] * len(batch.answers)
            ahead_P = torch.tensor(margins, device=reward_A.device)[pairs.document_P]
            total = -(F.logsigmoid(reward_A[pairs.better_P] - reward_A[pairs.worse_P] - ahead_P) * pairs.weight_P).sum()
        if config.centre:
            sums_P = reward_A[pairs.better_P] + reward_A[pairs.worse_P]
            total = total + config.centre * (sums_P.square() * pairs.weight_P).sum()
        length_A = torch.tensor([float(n) for answers in batch.answers for n in answers], device=reward_A.device)
        return Loss(total, int(live_D.sum()), metrics=pair_sums(pairs, length_A, {"reward": reward_A.detach()}))

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        return pair_figures(sums)
