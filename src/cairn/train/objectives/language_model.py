"""Pretraining and continued pretraining: every token after a document's first is a target. Knows batches; no chat."""

from __future__ import annotations

from typing import Any, Literal

from cairn.train.forward import target_loss
from cairn.train.objectives import Base, Loss


class Objective(Base):
    """Next-token prediction over whole documents; dialogues are read as text of their format."""

    targets: Literal["all", "mask", "answers"] = "all"

    def loss(self, model: Any, batch: Any) -> Loss:
        return target_loss(model, batch, self.z_loss, self.of_source)
