"""Whether the kernels of training give what plain torch gives: asked once a process, before they are trusted. Knows small tensors only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 2e-2
"""Largest difference against fp32, as a share of the largest value: bf16 has 8 bits."""
LENGTHS = (37, 1, 50)
HEADS, GROUPS, SIZE, WINDOW = 4, 2, 32, 20


def trial(kernels: Mapping[str, Callable[..., Any]], attention: Callable[..., Tensor]) -> str:
    """What is wrong; empty if nothing.

    Args:
        kernels: the kernels of formulas, by name.
        attention: `native.train.attention`.
    """
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(torch.bfloat16)

    with torch.enable_grad():
        pairs = {**_norm(kernels, some), **_gate(kernels, some), **_attention(attention, some, None), **_attention(attention, some, WINDOW)}
    return differing(pairs, TOLERANCE)


Pairs = dict[str, tuple[Tensor, Tensor]]
"""By what is computed: our own, and plain torch's in fp32."""


def differing(pairs: Pairs, tolerance: float) -> str:
    """The first of these that lie farther apart than such a share of the largest value, in a sentence; empty if none does."""
    for name, (mine, theirs) in pairs.items():
        off = float((mine.detach().float() - theirs.detach()).abs().max() / theirs.detach().abs().max())
        if not off <= tolerance:
            return f"the kernel of {name} differs from plain torch here (by {off:.1e} of the largest value)"
    return ""


def _norm(kernels: Mapping[str, Callable[..., Any]], some: Callable[..., Tensor]) -> Pairs:
    x, weight, g = some(200, 64), some(64), some(200, 64)
    y, scale = kernels["rms_norm"](x, weight, 1e-5)
    dx, dw = kernels["rms_norm_backward"](g, x, weight, scale)
    leaves = [t.float().requires_grad_() for t in (x, weight)]
    out = leaves[0] * torch.rsqrt(leaves[0].square().mean(-1, keepdim=True) + 1e-5) * leaves[1]
    wanted = torch.autograd.grad(out, leaves, g.float())
    return {"a norm": (y, out), "a norm's gradient": (dx, wanted[0]), "a norm's weight": (dw, wanted[1])}


def _gate(kernels: Mapping[str, Callable[..., Any]], some: Callable[..., Tensor]) -> Pairs:
    x, g = some(40, 128), some(40, 64)
    leaf = x.float().requires_grad_()
    gate, up = leaf.chunk(2, -1)
    out = F.silu(gate) * up
    (wanted,) = torch.autograd.grad(out, leaf, g.float())
    return {"a gate": (kernels["gated_silu"](x), out), "a gate's gradient": (kernels["gated_silu_backward"](g, x), wanted)}


def _attention(attention: Callable[..., Tensor], some: Callable[..., Tensor], window: int | None) -> Pairs:
    total = sum(LENGTHS)
    inputs = [some(total, n, SIZE) for n in (HEADS, GROUPS, GROUPS)]
    g = some(total, HEADS, SIZE)
    starts = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    mine, theirs = [x.clone().requires_grad_() for x in inputs], [x.float().requires_grad_() for x in inputs]
    out = attention(*mine, starts, SIZE**-0.5, window)
    rows = []
    for q, k, v in zip(*(x.split(LENGTHS) for x in theirs), strict=True):
        far = torch.arange(len(q))[:, None] - torch.arange(len(q))[None]
        seen = (far >= 0) & (far < (window or total))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        rows.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1))
    wanted = torch.cat(rows)
    found = zip(torch.autograd.grad(out, mine, g), torch.autograd.grad(wanted, theirs, g.float()), strict=True)
    name = "attention" if window is None else "attention in a window"
    return {name: (out, wanted), **{f"{name}: gradient {i}": pair for i, pair in enumerate(found)}}
