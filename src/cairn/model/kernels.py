"""The formulas that a block is made of besides matrix products, forward and backward, each as one function. Knows tensors; no module.

Each is plain torch and runs as it stands. While `native.train` is switched on, our own kernels compute what they serve. `compiled(True)`
hands the rest to torch's compiler, which makes one pass over memory out of several; only these few small functions are compiled, with
free shapes, so that it takes seconds and not minutes (docs/experiments.md). All give the same numbers up to rounding in the compute type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cairn.ledger.environment import compiler_path
from cairn.model.native import train as native
from cairn.model.switch import Switch

_compiled: dict[str, Callable[..., Any]] = {}
_compile = Switch()
compiled = _compile.held
"""A context in which the formulas run compiled, or as they stand."""


def compiler_found() -> bool:
    """Whether torch's compiler can work here: on a CPU it needs a C++ compiler."""
    return torch.cuda.is_available() or compiler_path() is not None


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, our own kernel of its name where that serves the arguments, or its compiled form while that is switched on."""
    name = function.__name__
    own = native.KERNELS.get(name)

    def call(*args: Any) -> Any:
        if own is not None and native.serves(*args, multiple=own.multiple, wide=own.wide):
            return own.run(*args)
        if not _compile.on:
            return function(*args)
        if name not in _compiled:
            _compiled[name] = torch.compile(function, dynamic=True)
        return _compiled[name](*args)

    call.__doc__, call.__name__ = function.__doc__, name
    return call


@_kernel
def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) · weight, and 1 / rms(x) as T × 1 in fp32 (Zhang and Sennrich 2019)."""
    x = x_TD.float()
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return weight_D * (x * scale).to(x_TD.dtype), scale


@_kernel
def rms_norm_backward(g_TD: Tensor, x_TD: Tensor, weight_D: Tensor, scale_T1: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the input and, in fp32, of the weight."""
    x = x_TD.float() * scale_T1
    g = g_TD.float()
    gw = g * weight_D
    dx = (gw - x * (gw * x).mean(-1, keepdim=True)) * scale_T1
    return dx.to(x_TD.dtype), (g * x).flatten(0, -2).sum(0)


@_kernel
def gated_silu(gate_up_TI: Tensor) -> Tensor:
    """silu(gate) · up of a row that holds both, gate first (SwiGLU, Shazeer 2020)."""
    gate, up = gate_up_TI.chunk(2, -1)
    return F.silu(gate) * up


@_kernel
def gated_silu_backward(g_TI: Tensor, gate_up_TI: Tensor) -> Tensor:
    """The gradient of gate and up, side by side."""
    gate, up = gate_up_TI.chunk(2, -1)
    return torch.cat((torch.ops.aten.silu_backward(g_TI * up, gate), g_TI * F.silu(gate)), -1)


@_kernel
def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) of heads whose first half is rotated against their second."""
    first, second = x_THD.chunk(2, -1)
    return x_THD * cos_TD[:, None] + torch.cat((-second, first), -1) * sin_TD[:, None]


@_kernel
def rotate_back(g_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """The gradient of `rotate`: the rotation by the opposite angle."""
    first, second = g_THD.chunk(2, -1)
    return g_THD * cos_TD[:, None] + torch.cat((second, -first), -1) * sin_TD[:, None]


@_kernel
def add_to(sum_RD: Tensor, part_RD: Tensor) -> None:
    """Add in place, whatever the type of the part: torch makes a copy in the sum's type first."""
    sum_RD.add_(part_RD)
