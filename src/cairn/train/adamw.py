"""AdamW for what torch's own does not take: 8-bit states, bf16 weights that round by chance, and weights that have a rounded copy.

Knows weights and gradients alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cairn.train import blocks
from cairn.train.native import adamw as native
from cairn.train.rounding import Draws, round_to_bf16


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019), weight by weight and in fp32 whatever the weights and states are kept in.

    Every update is element by element, but that a block of a coded state is never cut inside a row.

    Args:
        groups: {"params", "peak", "weight_decay"} each; `lr` is set before each step.
        betas: of the averages of gradients and of their squares.
        eps: is added to the root of the latter.
        draws: seeds of roundings.
        coded: keep the moments in 8 bits.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float, draws: Draws, *, coded: bool = False) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.betas, self.eps, self.draws, self.coded = betas, eps, draws, coded

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad.float(), group["lr"], group["weight_decay"])

    def move(self, p: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
        """Update one weight and its state by an fp32 gradient."""
        state, (beta1, beta2) = self.state[p], self.betas
        count = int(state.get("step", 0)) + 1
        state["step"] = torch.tensor(float(count))
        mean = blocks.read(state, "exp_avg", blocks.MOMENT, p).lerp_(grad, 1.0 - beta1)
        squares = blocks.read(state, "exp_avg_sq", blocks.SQUARES, p).mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        weight = p if p.dtype == torch.float32 else p.float()
        if weight_decay:
            weight.mul_(1.0 - lr * weight_decay)
        spread = squares.sqrt().div_(math.sqrt(1.0 - beta2**count)).add_(self.eps)
        weight.addcdiv_(mean, spread, value=-lr / (1.0 - beta1**count))
        if weight is not p:
            p.copy_(round_to_bf16(weight, self.draws.seed(p, "weight")))
        coded = self.coded and blocks.is_coded(p)
        blocks.write(state, "exp_avg", mean, blocks.MOMENT if coded else None, self.draws.seed(p, "exp_avg"))
        blocks.write(state, "exp_avg_sq", squares, blocks.SQUARES if coded else None, self.draws.seed(p, "exp_avg_sq"))


class OnePassAdamW(torch.optim.Optimizer):
    """AdamW of fp32 weights that compute in bf16: clipped, moved and rounded in one pass over memory by our own kernel.

    Its states are those of torch's AdamW, by name and by bits: a training may go on with the other.

    Args:
        groups: {"params", "peak", "weight_decay"} each; `lr` is set before each step.
        betas, eps: as for `AdamW`.
        low: the rounded copy of each weight, by the weight's id; one that has none is only moved.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float, low: dict[int, Tensor]) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.betas, self.eps, self.low = betas, eps, low
        self.moved: set[int] = set()
        """Ids of the weights whose copies the last step has written."""

    @torch.no_grad()
    def move(self, gradients: Mapping[int, Tensor], shrink: float) -> None:
        """Update the weights that have a gradient, by their ids, after its product with `shrink`."""
        self.moved = set()
        for group in self.param_groups:
            rules = {"lr": group["lr"], "decay": group["weight_decay"], "betas": self.betas, "eps": self.eps}
            for p in group["params"]:
                if id(p) not in gradients:
                    continue
                state, copy = self.state[p], self.low.get(id(p))
                if not state:
                    state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
                count, grad = int(state["step"]), gradients[id(p)].contiguous()
                native.step(p, state["exp_avg"], state["exp_avg_sq"], grad, copy, count=count, shrink=shrink, **rules)
                if copy is not None:
                    self.moved.add(id(p))
