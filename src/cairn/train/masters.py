"""The weights that the optimiser moves, beside those that compute; and their gradient. Knows a model's parameters; no rule of moving.

With bf16 compute the model's own weights are bf16 and the optimiser moves fp32 masters, copied back once a step. With fp32, and
with pure bf16, the weights that compute are the ones that are moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from cairn.train.native import adamw as native


def is_plain(p: Tensor) -> bool:
    """Whether the numbers of a weight are its values: those of a frozen, quantised one (packed integers, fp8) must never be cast."""
    return p.is_floating_point() and p.element_size() > 1


class Masters:
    """The weights that the optimiser moves, and the gradient that it is given. Frozen weights are none of them.

    Args:
        model: its floating-point weights get the type `compute`, in place.
        compute: the type of forward and backward.
        pure: move the computing weights themselves, whatever their type.

    Attributes:
        named: name → tensor, in the model's order, tied weights once; fp32 unless pure.
        gradients: name → gradient of what has been computed so far, where there is one. In fp32 unless pure; that of a single backward
            stays as it came, for a copy of it would say no more.
        low: name → the weight that computes, where that is a rounded copy.
    """

    def __init__(self, model: Any, compute: torch.dtype, *, pure: bool = False) -> None:
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._same = pure or compute == torch.float32
        self.named: dict[str, Tensor] = {n: (p if self._same else p.detach().float().clone()) for n, p in self._live.items()}
        self.gradients: dict[str, Tensor] = {}
        # Parameters only: model.to() would round the rotary frequencies too, and positions would drift by whole radians.
        for p in model.parameters():
            if is_plain(p):
                p.data = p.data.to(compute)

    @property
    def low(self) -> dict[str, Tensor]:
        return {} if self._same else self._live

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradient of the micro-batch to the others, in fp32, and clear it."""
        if self._same:
            self.gradients = {name: p.grad for name, p in self._live.items() if p.grad is not None}
            return
        sums, more = [], []
        for name, live in self._live.items():
            if live.grad is None:
                continue
            if name in self.gradients:
                self.gradients[name] = self.gradients[name].float()
                sums.append(self.gradients[name])
                more.append(live.grad)
            else:
                self.gradients[name] = live.grad
            live.grad = None
        if sums:
            torch._foreach_add_(sums, more)

    @torch.no_grad()
    def publish(self, done: Collection[str] = ()) -> None:
        """Copy the masters into the weights that compute, but for those that somebody has done."""
        names = [name for name in self.low if name not in done]
        if names:
            torch._foreach_copy_([self._live[name] for name in names], [self.named[name] for name in names])

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over saved masters."""
        for name, tensor in self.named.items():
            tensor.copy_(state[name])
        self.publish()

    def clear(self) -> None:
        """Forget the gradients."""
        self.gradients = {}
        for live in self._live.values():
            live.grad = None


def clipping(
    gradients: Mapping[str, Tensor], limit: float, total_square: Callable[[float], float] | None = None, *, own: bool = False
) -> tuple[float, float]:
    """The common norm of all gradients, and what each must be multiplied with for it to be at most `limit` (0: no limit).

    Args:
        total_square: gives the squared norm over all ranks from that of this rank's, where they hold different parts.
        own: use our own kernel where it can be.
    """
    if own and not native.missing() and all(g.dtype == torch.bfloat16 and g.is_contiguous() for g in gradients.values()):
        total = math.sqrt(sum(map(native.square_sum, gradients.values())))
    else:
        # The sum is fp32 for gradients of bf16 too, whose norms would be rounded to three digits.
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients.values()]
        total = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
    if total_square is not None:
        total = math.sqrt(total_square(total * total))
    return total, limit / (total + 1e-6) if limit > 0 and total > limit else 1.0
