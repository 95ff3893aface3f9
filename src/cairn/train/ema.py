"""An exponential moving average of the weights. Knows named weights and the number of a step; no model, no files."""

from __future__ import annotations

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.train.config import EmaConfig

_KEY = "/ema"


def is_average(path: str) -> bool:
    """Whether a saved tensor of that path belongs to an average."""
    return path.endswith(_KEY)


class Average:
    """The average of the weights that a run moves, in fp32 (Polyak and Juditsky 1992, with exponential weights).

    Attributes:
        named: name → average; empty until the average begins.
    """

    def __init__(self, config: EmaConfig) -> None:
        self.config = config
        self.named: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, step: int, weights: dict[str, Tensor]) -> None:
        """Take in the weights after `step` steps, if that is one of the steps that count."""
        since = step - self.config.first
        if since < 0 or since % self.config.every:
            return
        if not self.named:
            # A copy, not zeros: the average needs no correction for its start then.
            self.named = {name: p.detach().float().clone() for name, p in weights.items()}
            return
        torch._foreach_lerp_(list(self.named.values()), [weights[name].detach().float() for name in self.named], 1.0 - self.config.decay)

    def state(self) -> dict[str, Tensor]:
        """Flat tensors `name/ema` → value."""
        return {f"{name}{_KEY}": value for name, value in self.named.items()}

    def load(self, flat: dict[str, Tensor], step: int) -> None:
        """Take over what was saved after `step` steps; other entries of `flat` are left alone.

        Raises:
            UserError: there is no average in it, but there would be one at this step.
        """
        self.named = {name.removesuffix(_KEY): value.clone() for name, value in flat.items() if is_average(name)}
        if step >= self.config.first and not self.named:
            what = f"the checkpoint of step {step} has no average of the weights"
            raise UserError(what, where="ema", remedy="start anew, or without ema")
