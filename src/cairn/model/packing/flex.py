"""Attention over packed documents by torch's flex_attention, whose kernel is compiled for the rules at hand. CUDA; forward only on CPU.

The block mask is worked out from the documents' borders, block against block: no mask of T × T is built on the way to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from cairn.model.packing.layout import Layout
from cairn.model.packing.rules import Case, Rules

BLOCK = 128
"""Queries, and keys, of one block of the mask."""


def lacks(case: Case) -> str:
    """Why flex attention cannot serve `case`; empty where it can."""
    if case.device != "cuda":
        return "flex attention has no backward without CUDA"
    if case.key_size < 16 or case.value_size < 16:
        return f"flex attention has no heads of size {min(case.key_size, case.value_size)} (16 or more)"
    return ""


def attend(q_THD: Tensor, k_TGD: Tensor, v_TGE: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """Causal attention inside each document; shapes as in `packed_attention`."""
    q, k, v = (x.transpose(0, 1)[None].contiguous() for x in (q_THD, k_TGD, v_TGE))
    settings: dict[str, Any] = {
        "score_mod": None if rules.softcap is None else _capped(rules.softcap),
        "block_mask": block_mask(layout, rules.window), "scale": rules.scale, "enable_gqa": q.shape[1] != k.shape[1],
    }  # fmt: skip
    run: Any = _compiled() if q.device.type == "cuda" else flex_attention
    if rules.sinks_H is None:
        out = run(q, k, v, **settings)
    else:
        # A sink is one more term of the softmax's sum, with no value: it scales the output by the share that is left to the keys.
        out, aux = run(q, k, v, return_aux=AuxRequest(lse=True), **settings)
        share = torch.sigmoid(aux.lse - rules.sinks_H.to(aux.lse.dtype)[None, :, None])
        out = (out * share[..., None]).to(q.dtype)
    return out[0].transpose(0, 1)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)


@lru_cache(maxsize=8)
def _capped(softcap: float) -> Callable[..., Tensor]:
    """One function a cap: a new one a call would be compiled again."""

    def squash(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return squash


def block_mask(layout: Layout, window: int | None) -> BlockMask:
    """The blocks in which some query sees some key, and those in which every query sees every key; once a layout and window."""
    known = layout.masks.get(window)
    if known is not None:
        return known
    total = layout.tokens
    low_T = layout.first_T
    if window is not None:
        low_T = torch.maximum(low_T, torch.arange(total, device=low_T.device, dtype=torch.int32) - (window - 1))
    first = torch.arange(0, total, BLOCK, device=low_T.device)
    last = (first + BLOCK - 1).clamp(max=total - 1)
    # The lowest key that a query sees never falls from one query to the next, so a block's first and last query bound it.
    seen = (first[None, :] <= last[:, None]) & (last[None, :] >= low_T[first][:, None])
    # The last block may be ragged; it is never whole, so that its mask is asked for keys past the end.
    whole = (last[None, :] <= first[:, None]) & (first[None, :] >= low_T[last][:, None]) & (last - first == BLOCK - 1)[None, :]
    partial, whole = seen & ~whole, seen & whole

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (k >= low_T[q])

    made = BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(total, total)
    )  # fmt: skip
    layout.masks[window] = made
    return made


def _listed(blocks_QK: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and which, those first."""
    order = torch.argsort((~blocks_QK).int(), dim=1, stable=True)
    return blocks_QK.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
