"""Preference training: chosen answers above rejected ones, by the losses of `PreferenceConfig`. Knows batches; no chat.

The reference's log-probabilities are numbers that were measured before (`train/reference.py`): no second model is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from cairn.train.comparisons import Pairs, kto_losses, log_odds, pair_figures, pair_sums, preference_losses
from cairn.train.config import Training
from cairn.train.forward import TorchBatch, answer_log_probabilities
from cairn.train.objectives import Base, Loss
from cairn.train.preference import RULES, PreferenceConfig
from cairn.train.reference import zeros


class Objective(Base):
    """A prompt's answers against each other; the loss is a mean over prompts."""

    targets: Literal["all", "mask", "answers"] = "answers"
    rules = RULES

    def __init__(self, training: Training | None = None) -> None:
        self.config = (training.preference if training is not None else None) or PreferenceConfig()
        self.extra = int(self.config.mismatched)

    def count(self, batch: Any) -> int:
        return len(batch.doc_lengths)

    def measure(self, model: Any, batch: TorchBatch) -> Tensor:
        return answer_log_probabilities(model, batch)[0]

    def gather(self, values_A: Tensor, batch: TorchBatch) -> list[float]:
        """Of answers that are not their prompts': the sum of their log ratios, and how many there are."""
        live_D = self._live(batch)
        ratio_A = values_A - self._reference(batch, last=True)
        if self.config.normalised:
            # In the unit of what is compared with it.
            ratio_A = ratio_A / torch.bincount(batch.answer_N, minlength=len(ratio_A)).clamp_min(1)
        return [float((ratio_A * live_D).sum()), float(live_D.sum())]

    def loss(self, model: Any, batch: TorchBatch) -> Loss:
        config, live_D = self.config, self._live(batch)
        logp_A, length_A = answer_log_probabilities(model, batch)
        mean_logp_A = logp_A / length_A.clamp_min(1)
        pairs = Pairs.of(batch.per_document, config.pairs, live_D)
        shown: dict[str, Tensor] = {"logp": logp_A}
        if config.needs_reference:
            ratio_A = logp_A - self._reference(batch)
            # Schulman's k2 on the data's answers, which stand in for the policy's own.
            shown |= {"log_ratio": ratio_A, "kl": 0.5 * ratio_A.square()}
            value_A = ratio_A / length_A.clamp_min(1) if config.normalised else ratio_A
        elif config.loss == "orpo":
            value_A = log_odds(mean_logp_A)
        else:
            value_A = mean_logp_A if config.normalised else logp_A
        if config.loss == "kto":
            total_sum, number = batch.measured
            mean = total_sum / number
            total = (kto_losses(config, value_A, mean, batch.per_document) * live_D).sum()
            shown["reference_point"] = torch.full_like(value_A, mean)
        else:
            total = (preference_losses(config, config.scale * value_A, pairs) * pairs.weight_P).sum()
        if config.likelihood:
            best_D = torch.stack([own[0] for own in mean_logp_A.split(batch.per_document)])
            total = total - config.likelihood * (best_D * live_D).sum()
        shown["reward"] = config.scale * value_A
        return Loss(total, int(live_D.sum()), metrics=pair_sums(pairs, length_A, {k: v.detach() for k, v in shown.items()}))

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        found = pair_figures(sums)
        if "kl_chosen" in found:
            found["kl"] = 0.5 * (found.pop("kl_chosen") + found.pop("kl_rejected"))
        if "reference_point_chosen" in found:
            found["reference_point"] = found.pop("reference_point_chosen")
            del found["reference_point_rejected"]
        return found

    @contextmanager
    def rehearsing(self, documents: Sequence[Any]) -> Iterator[None]:
        self.reference = zeros(documents)
        yield
        self.reference = None

    def _live(self, batch: TorchBatch) -> Tensor:
        """1 for each document that has a target; a pass that only keeps the others company has none."""
        targets = torch.bincount(batch.document_N, minlength=len(batch.answers))
        return (targets > 0).float()

    def _reference(self, batch: TorchBatch, *, last: bool = False) -> Tensor:
        assert self.reference is not None, "the reference is measured before the first step"
        values: Tensor = self.reference.of(batch, last=last)
        return values
