"""Attention over packed documents by FlashAttention's kernels for rows of several documents. CUDA in half precision only.

Whichever is installed serves: FlashAttention 3 on Hopper, FlashAttention 2, or the kernels that torch brings along. What they
cannot do (`lacks`) is told before they are called, so that another backend takes the layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cairn.model.packing.layout import Layout
from cairn.model.packing.rules import Case, Rules

LARGEST = 256
"""Widest head of the kernels; narrower ones come in steps of STEP."""
STEP = 8


@dataclass(frozen=True)
class Kernel:
    """One library's function: (q_THD, k_TGD, v_TGD, layout, rules) → o_THD."""

    name: str
    softcap: bool
    run: Callable[[Tensor, Tensor, Tensor, Layout, Rules], Tensor]


def lacks(case: Case) -> str:
    """Why no installed kernel can serve `case`; empty where one can."""
    if case.device != "cuda":
        return "FlashAttention needs CUDA"
    if case.dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention computes in half precision, not in {str(case.dtype).removeprefix('torch.')}"
    if case.key_size != case.value_size:
        return f"FlashAttention has no values of size {case.value_size} beside keys of size {case.key_size}"
    if case.key_size > LARGEST or case.key_size % STEP:
        return f"FlashAttention has no heads of size {case.key_size} (multiples of {STEP} up to {LARGEST})"
    if case.sinks:
        return "FlashAttention has no attention sinks"
    if not kernels():
        return "no FlashAttention kernel is installed"
    if _kernel(case.softcap) is None:
        return f"the installed kernel ({kernels()[0].name}) has no soft cap"
    return ""


def attend(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """Causal attention inside each document; shapes as in `packed_attention`."""
    kernel = _kernel(rules.softcap)
    assert kernel is not None, "lacks() is asked first"
    return kernel.run(q_THD.contiguous(), k_TGD.contiguous(), v_TGD.contiguous(), layout, rules)


def _kernel(softcap: float | None) -> Kernel | None:
    return next((k for k in kernels() if k.softcap or softcap is None), None)


@lru_cache(maxsize=1)
def kernels() -> tuple[Kernel, ...]:
    """What is installed here, the fastest first."""
    found = []
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0):
        try:
            from flash_attn_interface import flash_attn_varlen_func as third  # type: ignore[import-not-found]

            found.append(Kernel("FlashAttention 3", True, _dao(third)))
        except (ImportError, OSError):
            pass  # absent, or built for another torch: the next one serves
    try:
        from flash_attn import flash_attn_varlen_func as second  # type: ignore[import-not-found]

        found.append(Kernel("FlashAttention 2", True, _dao(second)))
    except (ImportError, OSError):
        pass
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return tuple(found)
    if {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters):
        found.append(Kernel("torch's FlashAttention", False, _torch(varlen_attn)))
    return tuple(found)


def _window(rules: Rules) -> tuple[int, int]:
    """(keys to the left besides a query's own, keys to the right); -1 for all."""
    return (-1 if rules.window is None else rules.window - 1), 0


def _dao(function: Callable[..., Any]) -> Callable[[Tensor, Tensor, Tensor, Layout, Rules], Tensor]:
    """The interface of the FlashAttention packages (Dao 2023; Shah et al. 2024)."""

    def run(q: Tensor, k: Tensor, v: Tensor, layout: Layout, rules: Rules) -> Tensor:
        out = function(
            q, k, v, cu_seqlens_q=layout.borders_D, cu_seqlens_k=layout.borders_D, max_seqlen_q=layout.longest,
            max_seqlen_k=layout.longest, softmax_scale=rules.scale, causal=True, window_size=(_window(rules)[0], 0 if rules.window else -1),
            softcap=rules.softcap or 0.0, deterministic=torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip
        # Some releases of FlashAttention 3 return the log-sums as well.
        return out[0] if isinstance(out, tuple) else out

    return run


def _torch(function: Callable[..., Any]) -> Callable[[Tensor, Tensor, Tensor, Layout, Rules], Tensor]:
    """torch.nn.attention.varlen; it follows torch's setting of deterministic algorithms by itself. Where it knows no groups of heads
    (torch 2.11), each head gets the keys of its group: more memory, the same result."""
    groups = "enable_gqa" in inspect.signature(function).parameters

    def run(q: Tensor, k: Tensor, v: Tensor, layout: Layout, rules: Rules) -> Tensor:
        given: dict[str, Any] = {"scale": rules.scale, "window_size": _window(rules)}
        if groups:
            given["enable_gqa"] = q.shape[1] != k.shape[1]
        elif q.shape[1] != k.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        return function(q, k, v, layout.borders_D, layout.borders_D, layout.longest, layout.longest, **given)

    return run
