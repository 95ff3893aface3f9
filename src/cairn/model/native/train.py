"""The kernels of `train.cpp` for tensors: what a block computes besides matrix products, on a CPU in bf16. Knows tensors; no module.

They are used where they can be: on a processor with AVX-512 and its bf16 products, with a C++ compiler at the first use, and only if
they give what plain torch gives on small tensors. Elsewhere, and for what they do not serve, plain torch computes the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cairn.model.native import products
from cairn.model.native.build import opened
from cairn.model.native.trial import trial
from cairn.model.switch import Switch

ROWS = 128
"""Rows of a task, as `BLOCK` of train.cpp."""

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_FUNCTIONS: dict[str, list[Any]] = {
    "train_attention": [_P, ctypes.c_int],
    "train_norm": [_P, _P, _P, _P, _I, _I, _F, _I],
    "train_norm_backward": [_P, _P, _P, _P, _P, _P, _I, _I, _I],
    "train_gate": [_P, _P, _I, _I, _I],
    "train_gate_backward": [_P, _P, _P, _I, _I, _I],
    "train_cross_entropy": [_P, _P, _P, _P, _P, _I, _I, _F, _I],
    "train_add": [_P, _P, _I, _I],
}
_switch = Switch()
switched = _switch.held
"""A context in which the kernels are used, or plain torch."""


class _Attention(ctypes.Structure):
    """`Attention` of train.cpp."""

    _fields_ = (
        *((name, _P) for name in ("q", "k", "v")),
        *((name, _I) for name in ("step_q", "step_k", "step_v")),
        *((name, _P) for name in ("cosines", "sines", "o", "log_sum", "grad", "dq", "dk", "dv")),
        *((name, _I) for name in ("step_dq", "step_dk", "step_dv")),
        ("starts", _P),
        *((name, _I) for name in ("documents", "heads", "groups", "D")),
        ("scale", _F), ("threads", _I), ("window", _I),
    )  # fmt: skip


def serves(*inputs: Any, multiple: int = 16, wide: int | None = None) -> bool:
    """Whether the kernels are switched on, can be used, and take these inputs: tensors in bf16 on a CPU, their rows of a multiple of so
    many numbers, but for the one at the place `wide`, which is in fp32.

    A kernel knows addresses only: a tensor of another type than it takes it for would be read as noise.
    """
    if not _switch.on:
        return False
    for place, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            continue
        low = place != wide
        if x.device.type != "cpu" or x.dtype != (torch.bfloat16 if low else torch.float32) or (low and x.shape[-1] % multiple):
            return False
    return not missing()


@lru_cache(maxsize=1)
def missing() -> str:
    """Why the kernels cannot be used here; empty where they can."""
    return _opened()[1] or trial({name: kernel.run for name, kernel in KERNELS.items()}, attention) or products.missing()


@lru_cache(maxsize=1)
def _opened() -> tuple[Any, str]:
    """The library, or why there is none."""
    return opened(Path(__file__).with_name("train.cpp"), "train", _FUNCTIONS)


# -- rows -------------------------------------------------------------------------------------------------------------


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `kernels.rms_norm`."""
    T, D = x_TD.shape
    x, weight = x_TD.contiguous(), weight_D.contiguous()
    y, scale = torch.empty_like(x), torch.empty(T, 1)
    _opened()[0].train_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr(), T, D, eps, torch.get_num_threads())
    return y, scale


def rms_norm_backward(g_TD: Tensor, x_TD: Tensor, weight_D: Tensor, scale_T1: Tensor) -> tuple[Tensor, Tensor]:
    """As `kernels.rms_norm_backward`."""
    T, D = x_TD.shape
    g, x, weight = g_TD.contiguous(), x_TD.contiguous(), weight_D.contiguous()
    dx, sums = torch.empty_like(x), torch.empty(-(-T // ROWS), D)
    _opened()[0].train_norm_backward(
        g.data_ptr(), x.data_ptr(), weight.data_ptr(), scale_T1.data_ptr(), dx.data_ptr(), sums.data_ptr(), T, D, torch.get_num_threads()
    )
    return dx, sums.sum(0)


def gated_silu(gate_up: Tensor) -> Tensor:
    """As `kernels.gated_silu`."""
    x = gate_up.contiguous()
    inner = x.shape[-1] // 2
    y = x.new_empty(*x.shape[:-1], inner)
    _opened()[0].train_gate(x.data_ptr(), y.data_ptr(), y.numel() // inner, inner, torch.get_num_threads())
    return y


def gated_silu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    """As `kernels.gated_silu_backward`."""
    g, x = grad.contiguous(), gate_up.contiguous()
    dx = torch.empty_like(x)
    inner = x.shape[-1] // 2
    _opened()[0].train_gate_backward(g.data_ptr(), x.data_ptr(), dx.data_ptr(), g.numel() // inner, inner, torch.get_num_threads())
    return dx


def cross_entropy_gradient(z_NV: Tensor, targets_N: Tensor, counts_N: Tensor | None, z_loss: float) -> tuple[Tensor, Tensor]:
    """Logits become their loss's gradient, in place.

    Args:
        z_NV: logits, contiguous, V a multiple of 16.
        targets_N: ids.
        counts_N: how much each position counts, fp32; None: 1.
        z_loss: as in `head.cross_entropy`.

    Returns:
        −log p(target), and log Σ exp(z), of each position, fp32.
    """
    N, V = z_NV.shape
    nll, lse = torch.empty(N), torch.empty(N)
    counts, targets = None if counts_N is None else counts_N.float().contiguous(), targets_N.contiguous()
    _opened()[0].train_cross_entropy(
        z_NV.data_ptr(), targets.data_ptr(), None if counts is None else counts.data_ptr(), nll.data_ptr(), lse.data_ptr(), N, V, z_loss,
        torch.get_num_threads(),
    )  # fmt: skip
    return nll, lse


def add_to(total: Tensor, part: Tensor) -> None:
    """total (fp32, contiguous) += part (bf16, contiguous)."""
    _opened()[0].train_add(total.data_ptr(), part.data_ptr(), total.numel(), torch.get_num_threads())


# -- attention --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A kernel and what it takes."""

    run: Callable[..., Any]
    multiple: int = 16
    """What the length of rows is a multiple of."""
    wide: int | None = None
    """The place of the argument that is in fp32."""


KERNELS = {
    "rms_norm": Kernel(rms_norm), "rms_norm_backward": Kernel(rms_norm_backward, wide=3),
    # A row holds two halves.
    "gated_silu": Kernel(gated_silu, 32), "gated_silu_backward": Kernel(gated_silu_backward), "add_to": Kernel(add_to, 1, wide=0),
}  # fmt: skip
"""By the name of the formula in `model/kernels.py`."""


def attends(q_THD: Tensor, v_TGE: Tensor) -> bool:
    """Whether `attention` takes such heads."""
    return v_TGE.shape[-1] == q_THD.shape[-1] and serves(q_THD, v_TGE, multiple=32)


def attention(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, starts_D: Tensor, scale: float, window: int | None = None,
    angles: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Causal attention inside each document.

    Args:
        q_THD: queries, before their rotation where there are `angles`; heads of a token side by side in memory.
        k_TGD: keys, the same.
        v_TGD: values.
        starts_D: the first token of each document and the number of tokens, int32.
        scale: what scores are multiplied with.
        window: how many keys back a query sees, itself included; None for all.
        angles: cosines and sines of each token's position, T × D each, bf16; None: nothing is rotated.

    Returns:
        o_THD.
    """
    cosines, sines = (None, None) if angles is None else (x.contiguous() for x in angles)
    out: Tensor = _Apart.apply(q_THD, k_TGD, v_TGD, cosines, sines, starts_D, scale, window or 0)
    return out


def joined_attention(
    qkv_TC: Tensor, heads: int, groups: int, starts_D: Tensor, scale: float, window: int | None, angles: tuple[Tensor, Tensor]
) -> Tensor:
    """The same where a row holds a token's queries, keys and values; its gradient is one such matrix."""
    cosines, sines = (x.contiguous() for x in angles)
    out: Tensor = _Joined.apply(qkv_TC, heads, groups, cosines, sines, starts_D, scale, window or 0)
    return out


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cosines: Tensor | None, sines: Tensor | None, starts: Tensor, scale: float, window: int
    ) -> Tensor:
        q, k, v = (_side_by_side(x) for x in (q, k, v))
        ctx.rules = scale, window
        o, log_sum = _forward(q, k, v, cosines, sines, starts, scale, window)
        ctx.save_for_backward(q, k, v, cosines, sines, starts, o, log_sum)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cosines, sines, starts, o, log_sum = ctx.saved_tensors
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        scale, window = ctx.rules
        _backward(q, k, v, cosines, sines, starts, o, log_sum, scale, window, grads[0], dq, dk, dv)
        return dq, dk, dv, None, None, None, None, None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: int, groups: int, cosines: Tensor, sines: Tensor, starts: Tensor, scale: float, window: int
    ) -> Tensor:
        qkv = qkv.contiguous()
        ctx.shape, ctx.rules = (heads, groups), (scale, window)
        o, log_sum = _forward(*_heads(qkv, heads, groups), cosines, sines, starts, scale, window)
        ctx.save_for_backward(qkv, cosines, sines, starts, o, log_sum)
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cosines, sines, starts, o, log_sum = ctx.saved_tensors
        made = torch.empty_like(qkv)
        (q, k, v), (dq, dk, dv) = _heads(qkv, *ctx.shape), _heads(made, *ctx.shape)
        scale, window = ctx.rules
        _backward(q, k, v, cosines, sines, starts, o, log_sum, scale, window, grads[0], dq, dk, dv)
        return made, None, None, None, None, None, None, None


def _heads(qkv_TC: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the queries (T, H, D), keys and values (T, G, D) in rows that hold all three."""
    D = qkv_TC.shape[1] // (heads + 2 * groups)
    whole = qkv_TC.view(len(qkv_TC), -1, D)
    q, k, v = whole.split([heads, groups, groups], 1)
    return q, k, v


def _side_by_side(x_THD: Tensor) -> Tensor:
    """With a token's heads one after the other in memory, whatever lies between tokens."""
    return x_THD if x_THD.stride(2) == 1 and x_THD.stride(1) == x_THD.shape[2] else x_THD.contiguous()


def _described(
    q: Tensor, k: Tensor, v: Tensor, cosines: Tensor | None, sines: Tensor | None, starts: Tensor, scale: float, window: int, o: Tensor,
    log_sum: Tensor,
) -> _Attention:  # fmt: skip
    found = _Attention()
    for name, x in (("q", q), ("k", k), ("v", v)):
        setattr(found, name, x.data_ptr())
        setattr(found, f"step_{name}", x.stride(0))
    for name, y in (("cosines", cosines), ("sines", sines)):
        setattr(found, name, None if y is None else y.data_ptr())
    found.o, found.log_sum, found.starts, found.documents = o.data_ptr(), log_sum.data_ptr(), starts.data_ptr(), len(starts) - 1
    found.heads, found.groups, found.D = q.shape[1], k.shape[1], q.shape[2]
    found.scale, found.threads, found.window = scale, torch.get_num_threads(), window
    return found


def _forward(
    q: Tensor, k: Tensor, v: Tensor, cosines: Tensor | None, sines: Tensor | None, starts: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    o, log_sum = torch.empty(q.shape, dtype=q.dtype), torch.empty(q.shape[:2])
    _opened()[0].train_attention(ctypes.byref(_described(q, k, v, cosines, sines, starts, scale, window, o, log_sum)), 0)
    return o, log_sum


def _backward(
    q: Tensor, k: Tensor, v: Tensor, cosines: Tensor | None, sines: Tensor | None, starts: Tensor, o: Tensor, log_sum: Tensor,
    scale: float, window: int, grad: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    about = _described(q, k, v, cosines, sines, starts, scale, window, o, log_sum)
    grad = grad.contiguous()
    about.grad = grad.data_ptr()
    for name, x in (("dq", dq), ("dk", dk), ("dv", dv)):
        setattr(about, name, x.data_ptr())
        setattr(about, f"step_{name}", x.stride(0))
    _opened()[0].train_attention(ctypes.byref(about), 1)
