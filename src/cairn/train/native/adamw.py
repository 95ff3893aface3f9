"""The kernels of `adamw.cpp` for tensors: a weight's AdamW step in one pass over memory, and a gradient's norm. Knows no rate's schedule.

The step gives the bits of torch's fused AdamW, which takes the clipped gradient in fp32 and leaves the rounded copy to others: three
passes more.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cairn.model.native.build import opened

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
PIECE = 1 << 15
"""As in adamw.cpp."""
SIZE, STEPS = 80, 3
"""Of the trial: numbers of its weight, and how often that is moved."""


class _AdamW(ctypes.Structure):
    """`AdamW` of adamw.cpp."""

    _fields_ = (
        *((name, _P) for name in ("weight", "mean", "squares", "grad", "low")),
        *((name, _I) for name in ("n", "grad_is_bf16", "threads")),
        *((name, _F) for name in ("shrink", "keep", "lerp", "beta2", "rest2", "root2", "eps", "step")),
    )


_FUNCTIONS: dict[str, list[Any]] = {"adamw_step": [ctypes.POINTER(_AdamW)], "adamw_squares": [_P, _I, _I, _P]}


@functools.cache
def missing() -> str:
    """Why the kernel cannot be used here; empty where it can, and gives what torch gives on a small weight."""
    return _opened()[1] or _trial()


@functools.cache
def _opened() -> tuple[Any, str]:
    """The library, or why there is none."""
    # Whether a product and a sum become one is written in the source: the compiler's choice would be other bits.
    return opened(Path(__file__).with_name("adamw.cpp"), "adamw", _FUNCTIONS, ["-ffp-contract=off"])


def step(
    weight: Tensor, mean: Tensor, squares: Tensor, grad: Tensor, low: Tensor | None, *,
    count: int, shrink: float, lr: float, decay: float, betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """Move a weight and its moments (fp32, contiguous, of one shape) in place.

    Args:
        grad: of that shape, contiguous, fp32 or bf16.
        low: gets the moved weight in bf16; None: nobody does.
        count: which step of this weight it is, from 1.
        shrink: what the gradient is multiplied with first, for its clipping.
        lr, decay, betas, eps: as in Loshchilov and Hutter (2019).
    """
    beta1, beta2 = betas
    told = _AdamW(
        weight.data_ptr(), mean.data_ptr(), squares.data_ptr(), grad.data_ptr(), None if low is None else low.data_ptr(),
        weight.numel(), int(grad.dtype == torch.bfloat16), torch.get_num_threads(),
        shrink, 1.0 - lr * decay, 1.0 - beta1, beta2, 1.0 - beta2, math.sqrt(1.0 - beta2**count), eps, lr / (1.0 - beta1**count),
    )  # fmt: skip
    _opened()[0].adamw_step(ctypes.byref(told))


def square_sum(grad: Tensor) -> float:
    """The sum of the squares of a bf16 gradient, contiguous: torch copies it in fp32 first."""
    sums = torch.zeros(-(-grad.numel() // PIECE), dtype=torch.float64)
    _opened()[0].adamw_squares(grad.data_ptr(), grad.numel(), torch.get_num_threads(), sums.data_ptr())
    return float(sums.sum())


def _trial() -> str:
    """What is wrong; empty if nothing."""
    draw = torch.Generator().manual_seed(0)
    theirs = torch.randn(SIZE, generator=draw)
    mine, mean, squares = theirs.clone(), torch.zeros(SIZE), torch.zeros(SIZE)
    low = torch.zeros(SIZE, dtype=torch.bfloat16)
    rules: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8}
    known = torch.optim.AdamW([theirs], weight_decay=0.1, fused=True, **rules)
    for count in range(1, STEPS + 1):
        grad = torch.randn(SIZE, generator=draw).to(torch.bfloat16)
        theirs.grad = 0.5 * grad.float()
        known.step()
        step(mine, mean, squares, grad, low, count=count, shrink=0.5, decay=0.1, **rules)
    if not (torch.equal(mine, theirs) and torch.equal(low, mine.to(torch.bfloat16))):
        return "the kernel of AdamW differs from torch's here"
    wanted = float(low.double().square().sum())
    return "" if math.isclose(square_sum(low), wanted, rel_tol=1e-5) else "the kernel of norms differs from torch's here"
