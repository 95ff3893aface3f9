"""The weights that the optimiser moves, beside those that compute; and their gradient. Knows a model's parameters; no rule of moving.

With bf16 compute the model's own weights are bf16 and the optimiser moves fp32 masters, copied back once a step. With fp32, and
with pure bf16, the weights that compute are the ones that are moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
    """

    def __init__(self, model: Any, compute: torch.dtype, *, pure: bool = False) -> None:
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._same = pure or compute == torch.float32
        self.named: dict[str, Tensor] = {n: (p if self._same else p.detach().float().clone()) for n, p in self._live.items()}
        # Parameters only: model.to() would round the rotary frequencies too, and positions would drift by whole radians.
        for p in model.parameters():
            if is_plain(p):
                p.data = p.data.to(compute)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradient of the micro-batch to the masters', in fp32, and clear it."""
        if self._same:
            return
        sums, more = [], []
        for name, live in self._live.items():
            if live.grad is None:
                continue
            master = self.named[name]
            if master.grad is None:
                master.grad = live.grad.float()
            else:
                sums.append(master.grad)
                more.append(live.grad)
            live.grad = None
        if sums:
            torch._foreach_add_(sums, more)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the weights that compute."""
        if not self._same and self._live:
            torch._foreach_copy_(list(self._live.values()), list(self.named.values()))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over saved masters."""
        for name, tensor in self.named.items():
            tensor.copy_(state[name])
        self.publish()

    def clear(self) -> None:
        for tensor in self.named.values():
            tensor.grad = None


def clip_gradients(named: dict[str, Tensor], limit: float, total_square: Callable[[float], float] | None = None) -> float:
    """Scale all gradients so that their common norm is at most `limit` (0: only measure). Returns the norm before.

    `total_square` gives the squared norm over all ranks from that of this rank's, where they hold different parts.
    """
    grads = [p.grad for p in named.values() if p.grad is not None]
    # The sum is fp32 for gradients of bf16 too, whose norms would be rounded to three digits.
    total = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in grads])))
    if total_square is not None:
        total = math.sqrt(total_square(total * total))
    if limit > 0 and total > limit:
        torch._foreach_mul_(grads, limit / (total + 1e-6))
    return total
