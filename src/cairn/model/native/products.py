"""The kernels of `products.cpp` for tensors: the three matrix products of a linear layer in bf16. Knows tensors; no layer.

torch's own go through oneDNN, which took 15 to 25 % longer for the sizes of small models (docs/experiments.md). They serve what
`native.train.serves` says, and matrices as `takes` wants them.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cairn.model.native.build import opened
from cairn.model.native.trial import differing

_P, _I = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS = {
    "product_forward": [_P, _I, _P, _P, _I, _I, _I, _I, _I],
    "product_input": [_P, _I, _P, _P, _I, _I, _I, _I],
    "product_weight": [_P, _I, _P, _I, _P, _P, _I, _I, _I, _I],
}
FEWEST = 64
"""Rows of a product: fewer would not pay for laying out the weight."""
TOLERANCE = 1e-2
"""Largest difference against fp32, as a share of the largest value: bf16 has 8 bits."""


@functools.cache
def missing() -> str:
    """Why the kernels cannot be used here; empty where they can, and give what torch gives on small matrices."""
    return _opened()[1] or _trial()


@functools.cache
def _opened() -> tuple[Any, str]:
    """The library, or why there is none."""
    return opened(Path(__file__).with_name("products.cpp"), "products", _FUNCTIONS)


def takes(T: int, weight_OI: Tensor) -> bool:
    """Whether a product of so many rows with this weight is made here."""
    return T >= FEWEST and weight_OI.is_contiguous() and not any(n % 16 for n in weight_OI.shape)


def forward(x_TI: Tensor, weight_OI: Tensor, out: Tensor | None = None) -> Tensor:
    """x · Wᵀ, T × O; into `out`, whose rows may be farther apart, where that is given."""
    x, (outs, ins) = _rows(x_TI), weight_OI.shape
    y = x.new_empty(len(x), outs) if out is None else out
    _opened()[0].product_forward(
        x.data_ptr(), x.stride(0), weight_OI.data_ptr(), y.data_ptr(), y.stride(0), len(x), outs, ins, torch.get_num_threads()
    )
    return y


def input_gradient(g_TO: Tensor, weight_OI: Tensor) -> Tensor:
    """g · W, T × I."""
    g, (outs, ins) = _rows(g_TO), weight_OI.shape
    dx = g.new_empty(len(g), ins)
    _opened()[0].product_input(g.data_ptr(), g.stride(0), weight_OI.data_ptr(), dx.data_ptr(), len(g), outs, ins, torch.get_num_threads())
    return dx


def weight_gradient(g_TO: Tensor, x_TI: Tensor) -> Tensor:
    """gᵀ · x, O × I."""
    g, x = _rows(g_TO), _rows(x_TI)
    (T, outs), ins = g.shape, x.shape[1]
    dw = g.new_empty(outs, ins)
    room = torch.empty((-(-T // 2) + 2) * min(outs, ins), dtype=torch.int32)
    _opened()[0].product_weight(
        g.data_ptr(), g.stride(0), x.data_ptr(), x.stride(0), dw.data_ptr(), room.data_ptr(), T, outs, ins, torch.get_num_threads()
    )
    return dw


def _rows(x: Tensor) -> Tensor:
    """The matrix, or a copy of it, with the numbers of a row side by side and an even step from row to row."""
    return x if x.stride(1) == 1 and x.stride(0) % 2 == 0 and x.stride(0) >= x.shape[1] else x.contiguous()


def _trial() -> str:
    """What is wrong; empty if nothing."""
    draw = torch.Generator().manual_seed(0)
    for T, outs, ins in ((67, 80, 32), (64, 32, 80)):
        x, w, g = (torch.randn(*shape, generator=draw).to(torch.bfloat16) for shape in ((T, ins), (outs, ins), (T, outs)))
        pairs = {
            "a product": (forward(x, w), x.float() @ w.float().t()), "a product's input": (input_gradient(g, w), g.float() @ w.float()),
            "a product's weight": (weight_gradient(g, x), g.float().t() @ x.float()),
        }  # fmt: skip
        if reason := differing(pairs, TOLERANCE):
            return reason
    return ""
