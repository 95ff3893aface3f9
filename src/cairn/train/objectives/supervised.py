"""Instruction tuning: the targets are the assistant's tokens and its stop token, by the loss mask. Knows batches; no chat.

Plain text in the mix counts in full (its mask is all ones), which is how KARAKURI's continual tuning keeps unstructured text in.
"""

from __future__ import annotations

from typing import Any, Literal

from cairn.train.forward import target_loss
from cairn.train.objectives import Base, Loss


class Objective(Base):
    """Next-token prediction where the loss mask stands."""

    targets: Literal["all", "mask", "answers"] = "mask"

    def loss(self, model: Any, batch: Any) -> Loss:
        return target_loss(model, batch, self.z_loss, self.of_source)
