"""Attention over packed documents that never looks across a document's border. Knows shapes; no rows, no text.

Documents lie back to back in one stretch of T tokens. They are sorted into buckets of similar length, each bucket is one
batched causal attention, and padding stands only at the end of a document, where a causal query of a real token cannot see it. So
no mask of T × T is ever built and nothing can leak. Documents up to SHORT tokens go through plain matrix products with a
backward of our own (twice as fast as torch's CPU flash kernel in bf16 at these lengths: docs/experiments.md), longer ones through
torch's scaled_dot_product_attention. Soft caps and ALiBi are not known here: families that need them fail `packs_cleanly`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "cairn_packed"
SHORT = 512
"""Longest document, in tokens, for which the scores of a bucket are held in memory."""
FILL = 0.8
"""A document joins a bucket when it is at least this share of the bucket's longest."""


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length: `count` rows of `length` tokens inside the padded order, starting at `start`."""

    start: int
    count: int
    length: int


@dataclass(frozen=True)
class Layout:
    """Where the tokens of packed documents go and where they come from.

    Attributes:
        to_padded_P: for each slot of the padded order the token that fills it (padding repeats the last token).
        to_flat_T: for each token its slot in the padded order.
        real_P: 1.0 where a slot holds a real token, or None where no slot is padding.
        buckets: the stretches of the padded order.
    """

    to_padded_P: Tensor
    to_flat_T: Tensor
    real_P: Tensor | None
    buckets: tuple[Bucket, ...]

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Layout:
        """The layout of documents with these `lengths`, in tokens, each at least 1."""
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        total = starts[-1]
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        pieces, buckets, at, first = [], [], 0, 0
        while first < len(order):
            longest, last = lengths[order[first]], first
            while last < len(order) and lengths[order[last]] >= FILL * longest:
                last += 1
            slots = torch.full((last - first, longest), total, dtype=torch.long)
            for row, doc in enumerate(order[first:last]):
                slots[row, : lengths[doc]] = torch.arange(starts[doc], starts[doc + 1])
            pieces.append(slots.view(-1))
            buckets.append(Bucket(at, last - first, longest))
            at, first = at + slots.numel(), last
        padded = torch.cat(pieces)
        real = padded < total
        to_flat = torch.empty(total, dtype=torch.long)
        to_flat[padded[real]] = torch.arange(at)[real]
        weight = None if bool(real.all()) else real.float().to(device)
        return Layout(padded.clamp(max=total - 1).to(device), to_flat.to(device), weight, tuple(buckets))


class _ToPadded(torch.autograd.Function):
    """Tokens into the padded order. Its backward is a gather: torch's own (an index_add) was 8 % of a training step."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x_THD.index_select(0, layout.to_padded_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.layout.to_flat_T), None


class _ToFlat(torch.autograd.Function):
    """The padded order back to tokens. In its backward padding gets zero, so nothing flows out of it."""

    @staticmethod
    def forward(ctx: Any, x_PHD: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return x_PHD.index_select(0, layout.to_flat_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        g = grads[0].index_select(0, ctx.layout.to_padded_P)
        if ctx.layout.real_P is not None:
            g = g * ctx.layout.real_P.to(g.dtype)[:, None, None]
        return g, None


class _ShortAttention(torch.autograd.Function):
    """Causal attention of one bucket by plain products; keeps the probabilities for the backward.

    Shapes: q_NLHD, k_NLGD, v_NLGD with H a multiple of G (grouped heads share a key); returns o_NLHD.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        N, L, H, D = q.shape
        G = k.shape[2]
        qb, kb, vb = _fold_queries(q * scale, G), _fold_keys(k), _fold_keys(v)
        scores = torch.bmm(qb, kb.transpose(1, 2)).view(-1, L, L)
        p = torch.softmax(scores.add_(_causal_bias(L, window, scores.dtype, scores.device)), -1).view(N * G, -1, L)
        o = _unfold_queries(torch.bmm(p, vb), N, L, H, G)
        ctx.save_for_backward(qb, kb, vb, p, o)
        ctx.shape, ctx.scale = (N, L, H, D, G), scale
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        qb, kb, vb, p, o = ctx.saved_tensors
        N, L, H, _, G = ctx.shape
        do = grads[0]
        delta = _fold_queries((do * o).sum(-1, keepdim=True), G)
        dob = _fold_queries(do, G)
        dv = torch.bmm(p.transpose(1, 2), dob)
        ds = torch.bmm(dob, vb.transpose(1, 2)).sub_(delta).mul_(p)
        dq = torch.bmm(ds, kb).mul_(ctx.scale)
        dk = torch.bmm(ds.transpose(1, 2), qb)
        return _unfold_queries(dq, N, L, H, G), _unfold_keys(dk, N, G), _unfold_keys(dv, N, G), None, None


def _fold_queries(x_NLHD: Tensor, groups: int) -> Tensor:
    """(N, L, H, D) → (N·G, H/G·L, D)."""
    N, L, H, D = x_NLHD.shape
    return x_NLHD.view(N, L, groups, H // groups, D).permute(0, 2, 3, 1, 4).reshape(N * groups, -1, D)


def _unfold_queries(x: Tensor, N: int, L: int, H: int, groups: int) -> Tensor:
    return x.view(N, groups, H // groups, L, -1).permute(0, 3, 1, 2, 4).reshape(N, L, H, -1)


def _fold_keys(x_NLGD: Tensor) -> Tensor:
    """(N, L, G, D) → (N·G, L, D)."""
    N, L, G, D = x_NLGD.shape
    return x_NLGD.transpose(1, 2).reshape(N * G, L, D)


def _unfold_keys(x: Tensor, N: int, groups: int) -> Tensor:
    return x.view(N, groups, x.shape[1], -1).transpose(1, 2)


def _causal_bias(length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a query (row) may see a key (column), minus infinity elsewhere: causal, and at most `window` keys back."""
    rows = torch.arange(length, device=device)[:, None]
    columns = torch.arange(length, device=device)[None, :]
    hidden = columns > rows
    if window is not None and window < length:
        hidden |= columns <= rows - window
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def packed_attention(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, layout: Layout, scale: float, window: int | None = None) -> Tensor:
    """Causal attention inside each document of `layout`.

    Args:
        q_THD: queries, T tokens × H heads × D.
        k_TGD: keys, T × G × D, H a multiple of G.
        v_TGD: values, like the keys.
        layout: the documents.
        scale: what scores are multiplied with.
        window: how many keys back a query sees, itself included; None for all.

    Returns:
        o_THD.
    """
    q, k, v = (_ToPadded.apply(x, layout) for x in (q_THD, k_TGD, v_TGD))
    outs = []
    for b in layout.buckets:
        end = b.start + b.count * b.length
        qb, kb, vb = (x[b.start : end].view(b.count, b.length, x.shape[1], x.shape[2]) for x in (q, k, v))
        attend = _ShortAttention.apply if b.length <= SHORT else _long_attention
        o = attend(qb, kb, vb, scale, window)
        outs.append(o.reshape(b.count * b.length, q.shape[1], -1))
    return _ToFlat.apply(torch.cat(outs), layout)


def _long_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    length = q.shape[1]
    banded = window is not None and window < length
    bias = _causal_bias(length, window, q.dtype, q.device) if banded else None
    o = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias, is_causal=bias is None, scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )  # fmt: skip
    return o.transpose(1, 2)


def _interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Layout | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: tensors of 1 × heads × T × D; returns 1 × T × heads × D."""
    if packing is None or query.shape[0] != 1 or dropout or softcap is not None or attention_mask is not None:
        raise NotImplementedError("packed attention needs one row, its layout, and no dropout, soft cap or mask")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window = getattr(module, "sliding_window", None)
    o = packed_attention(q, k, v, packing, scaling if scaling is not None else q.shape[-1] ** -0.5, window)
    return o[None], None


def enable(model: Any) -> None:
    """Make `model` (a transformers causal LM) take `packing=Layout` in its forward."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _interface)
    model.set_attn_implementation(NAME)


def packs_cleanly(model: Any) -> bool:
    """Whether documents packed into one row give the same hidden states as each alone, and changing one moves no other.

    Some families carry a state or a mask across the border (MPT, Falcon-Mamba, Jamba do): those must be trained unpacked.
    """
    body = model.base_model
    device = next(model.parameters()).device
    vocab = model.get_input_embeddings().weight.shape[0]
    a, b = torch.arange(5, device=device) % vocab, (torch.arange(7, device=device) * 3 + 1) % vocab
    with torch.no_grad():
        try:
            first, second = (_hidden(body, [x, b]) for x in (a, (a + 1) % vocab))
            alone = _hidden(body, [b])
        except (NotImplementedError, TypeError, RuntimeError):
            return False
    tolerance = 1e-4 if first.dtype == torch.float32 else 3e-2
    close = float((first[5:] - alone).abs().max()) <= tolerance * max(1.0, float(alone.abs().max()))
    return bool(torch.equal(first[5:], second[5:])) and close


def _hidden(body: Any, documents: list[Tensor]) -> Tensor:
    lengths = [len(d) for d in documents]
    positions = torch.cat([torch.arange(n, device=documents[0].device) for n in lengths])
    layout = Layout.of(lengths, documents[0].device)
    return body(input_ids=torch.cat(documents)[None], position_ids=positions[None], use_cache=False, packing=layout).last_hidden_state[0]
