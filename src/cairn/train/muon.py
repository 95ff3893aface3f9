"""Muon: momentum whose matrix is made nearly orthogonal. Knows matrices and their gradients; not which weights of a model it is given.

A step has three parts. The momentum and the final move are element by element, so a shard can do them alone; `orthogonalise` needs whole
matrices, and is the one place where shards would be gathered.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cairn.train import blocks
from cairn.train.rounding import Draws, round_to_bf16

STACK = 1 << 22
"""Elements that go through the rounds at once: enough to fill matrix products, and not a second copy of a large model."""


class Spread:
    """Where matrices are: whole, and all here. Ranks that divide them, or the work, say otherwise (sharding.py)."""

    world = 1
    """How many ranks divide the work."""

    def shape(self, p: Tensor) -> tuple[int, ...]:
        """The shape of the whole matrix that `p` is, or is a slice of."""
        return tuple(p.shape)

    def orthogonalise(self, updates: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        """Updates of one whole `shape` made orthogonal, stacked; of slices their slices."""
        return orthogonalise(torch.stack(updates))


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): momentum, then the update's matrix made nearly orthogonal by five Newton-Schulz rounds.

    Matrices of one shape go through the rounds as one batch, which torch's own Muon does one by one (docs/experiments.md). The update
    is scaled by sqrt(max(1, rows / columns)).

    Args:
        groups: {"params", "peak", "weight_decay"} each; `lr` is set before each step.
        momentum: of the average of gradients.
        draws: seeds of roundings, for bf16 weights and coded states.
        coded: keep the momentum in 8 bits.
        spread: where the matrices are.
    """

    def __init__(
        self, groups: list[dict[str, Any]], momentum: float, draws: Draws, *, coded: bool = False, spread: Spread | None = None
    ) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.momentum, self.draws, self.coded, self.spread = momentum, draws, coded, spread or Spread()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(self.spread.shape(p), []).append(p)
            for shape, params in shapes.items():
                count = max(1, STACK // math.prod(shape)) * self.spread.world
                for at in range(0, len(params), count):
                    some = params[at : at + count]
                    updates = self.spread.orthogonalise(self.directions(some), shape)
                    self.move(some, updates, group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1])), group["lr"] * group["weight_decay"])

    def directions(self, params: list[Tensor]) -> list[Tensor]:
        """Nesterov's look-ahead on each weight's momentum, in fp32; moves the momentum on."""
        grads = [p.grad.float() for p in params if p.grad is not None]
        averages = [blocks.read(self.state[p], "momentum", blocks.MOMENT, p) for p in params]
        torch._foreach_lerp_(averages, grads, 1.0 - self.momentum)
        for p, average in zip(params, averages, strict=True):
            blocks.write(self.state[p], "momentum", average, blocks.MOMENT if self.coded else None, self.draws.seed(p, "momentum"))
        return list(torch._foreach_lerp(grads, averages, self.momentum))

    def move(self, params: list[Tensor], updates_NRC: Tensor, scale: float, decay: float) -> None:
        """Take a share `decay` off the weights, and `scale` times the updates."""
        for p, update in zip(params, updates_NRC, strict=True):
            weight = p if p.dtype == torch.float32 else p.float()
            if decay:
                weight.mul_(1.0 - decay)
            weight.add_(update, alpha=-scale)
            if weight is not p:
                p.copy_(round_to_bf16(weight, self.draws.seed(p, "weight")))


def orthogonalise(x_NRC: Tensor, rounds: int = 5) -> Tensor:
    """Each of N matrices with its singular values pushed towards 1, in fp32 out; products run in bf16.

    The quintic coefficients are those of the paper: steep at 0, so small singular values rise fast.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x_NRC.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        # The smaller of the two Gram matrices, on its own side: a transposed copy of x would make the last sum a strided one.
        gram = x.mT @ x if tall else x @ x.mT
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, inner, beta=a) if tall else torch.baddbmm(x, inner, x, beta=a)
    return x.float()
