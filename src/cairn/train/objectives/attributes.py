"""Attribute predictors: several numbers for an answer, learnt from labels that people gave it. Knows batches; no chat.

The loss is SteerLM's (Dong et al. 2023), a mean of squared distances, each in units of its attribute's range; labels that a row lacks
have no term. The stage `label` gives the labels; the rows themselves are documents that end with their answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from cairn.model.reward import scores_at
from cairn.train.config import Training
from cairn.train.forward import TorchBatch, hidden_states
from cairn.train.objectives import Base, Loss


class Objective(Base):
    """Labels of documents, read at their last token; the loss is a mean over labels."""

    targets: Literal["all", "mask", "answers"] = "mask"
    head = "reward"

    def __init__(self, training: Training | None = None) -> None:
        self.labels: list[Tensor] = []
        """Of each source the labels of its documents (documents, attributes), fp32, NaN where there is none."""
        self.spans: Tensor = torch.ones(1)
        """The width of each attribute's range."""

    def give(self, labels: Sequence[Sequence[Sequence[float]]], spans: Sequence[int]) -> None:
        """Take the labels of all documents of each source, and the width of each attribute's range."""
        self.labels = [torch.tensor(source, dtype=torch.float32).reshape(-1, len(spans)) for source in labels]
        self.spans = torch.tensor(spans, dtype=torch.float32)

    def of(self, sources: Sequence[int], documents: Sequence[int]) -> Tensor:
        """The labels of these documents (D, attributes)."""
        return torch.stack([self.labels[source][number] for source, number in zip(sources, documents, strict=True)])

    def count(self, batch: Any) -> int:
        return int((~self.of(batch.sources, batch.documents).isnan()).sum())

    def loss(self, model: Any, batch: TorchBatch) -> Loss:
        documents = len(batch.origins)  # a filling at the end is none
        ends_D = torch.tensor(batch.lengths).cumsum(0)[:documents] - 1
        device = batch.ids_T.device
        value_DK = scores_at(model, hidden_states(model, batch), batch.ids_T, ends_D.to(device))
        label_DK = self.of(*zip(*batch.origins, strict=True)).to(device)
        # A pass that only keeps other ranks company has no target, and its labels count elsewhere.
        live_D = torch.bincount(batch.document_N, minlength=documents)[:documents] > 0
        known_DK = ~label_DK.isnan() & live_D[:, None]
        apart_DK = torch.where(known_DK, value_DK - label_DK.nan_to_num(), 0.0)
        total = (apart_DK / self.spans.to(device)).square().sum()
        return Loss(total, int(known_DK.sum()), metrics={"distance": float(apart_DK.detach().abs().sum()), "labels": float(known_DK.sum())})

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        return {"distance": sums["distance"] / max(1.0, sums["labels"])}
