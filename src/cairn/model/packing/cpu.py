"""Attention over packed documents as batches of documents of similar length, in plain torch. Runs on every device; CPU's backend.

Documents are sorted into buckets of similar length, each bucket is one batched causal attention, and padding stands only at the end
of a document, where a causal query of a real token cannot see it. So no mask of T × T is ever built and nothing can leak.
In bf16, where our own kernel can be used (`model/native`), it takes all documents as they lie. Otherwise documents up to SHORT tokens
go through plain matrix products with a backward of our own (twice as fast as torch's CPU flash kernel in bf16 at these lengths:
docs/experiments.md). Longer ones go through torch's scaled_dot_product_attention, or, where a window, a soft cap or sinks are asked for,
through the same products over stretches of queries that are computed again in the backward, so that memory grows with the length and
not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cairn.model.native import train as native
from cairn.model.packing.layout import Layout, Padded
from cairn.model.packing.rules import Case, Rules

SHORT = 512
"""Longest document, in tokens, for which the scores of a bucket are held in memory."""
STRETCH = 256
"""Queries whose scores are held at once in documents longer than that."""


def lacks(case: Case) -> str:
    """Why this backend cannot serve `case`: never."""
    return ""


def attend(q_THD: Tensor, k_TGD: Tensor, v_TGE: Tensor, layout: Layout, rules: Rules) -> Tensor:
    """Causal attention inside each document; shapes as in `packed_attention`."""
    if not layout.answers and rules.softcap is None and rules.sinks_H is None and native.attends(q_THD, v_TGE):
        return native.attention(q_THD, k_TGD, v_TGE, layout.borders_D, rules.scale, rules.window)
    padded = layout.padded
    q, k, v = (_ToPadded.apply(x, padded) for x in (q_THD, k_TGD, v_TGE))
    outs = []
    for b in padded.buckets:
        end = b.start + b.count * b.length
        qb, kb, vb = (x[b.start : end].view(b.count, b.length, x.shape[1], x.shape[2]) for x in (q, k, v))
        if b.length <= SHORT:
            o = _ShortAttention.apply(qb, kb, vb, rules.sinks_H, rules)
        elif rules.plain and q.shape[-1] == v.shape[-1]:
            o = _torch_attention(qb, kb, vb, rules.scale)
        else:
            o = _LongAttention.apply(qb, kb, vb, rules.sinks_H, rules)
        outs.append(o.reshape(b.count * b.length, q.shape[1], -1))
    return _ToFlat.apply(torch.cat(outs), padded)


# -- into the padded order and back -----------------------------------------------------------------------------------


class _ToPadded(torch.autograd.Function):
    """Tokens into the padded order. Its backward is a gather: torch's own (an index_add) was 8 % of a training step."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, padded: Padded) -> Tensor:
        ctx.padded = padded
        return x_THD.index_select(0, padded.to_padded_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return gathered(grads[0], ctx.padded.to_flat_T, ctx.padded.again), None


def gathered(g_PHD: Tensor, to_flat_T: Tensor, again: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
    """Gradients back at the tokens: that of each token's first place, and those of prompts' further places added to it."""
    out = g_PHD.index_select(0, to_flat_T)
    for tokens, places in again:
        # No index_add: tokens stand in a round once, so that adding is a gather and a copy, each deterministic and fast.
        out.index_copy_(0, tokens, out.index_select(0, tokens).add_(g_PHD.index_select(0, places)))
    return out


class _ToFlat(torch.autograd.Function):
    """The padded order back to tokens. In its backward padding gets zero, so nothing flows out of it."""

    @staticmethod
    def forward(ctx: Any, x_PHD: Tensor, padded: Padded) -> Tensor:
        ctx.padded = padded
        return x_PHD.index_select(0, padded.to_flat_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        g = grads[0].index_select(0, ctx.padded.to_padded_P)
        if ctx.padded.real_P is not None:
            g = g * ctx.padded.real_P.to(g.dtype)[:, None, None]
        return g, None


# -- one bucket -------------------------------------------------------------------------------------------------------


class _ShortAttention(torch.autograd.Function):
    """Causal attention of one bucket by plain products; keeps the probabilities for the backward.

    Shapes: q_NLHD, k_NLGD, v_NLGE with H a multiple of G (grouped heads share a key); returns o_NLHE.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks_H: Tensor | None, rules: Rules) -> Tensor:
        N, L, H, _ = q.shape
        G = k.shape[2]
        qb, kb, vb = _fold_queries(q * rules.scale, G), _fold_keys(k), _fold_keys(v)
        p, p_sink, squashed = _probabilities(qb, kb, _causal_bias(0, L, 0, L, rules.window, qb), rules.softcap, sinks_H)
        o = _unfold_queries(torch.bmm(p, vb), N, L, H, G)
        ctx.save_for_backward(qb, kb, vb, p, o, p_sink, squashed)
        ctx.shape, ctx.scale = (N, L, H, G), rules.scale
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        qb, kb, vb, p, o, p_sink, squashed = ctx.saved_tensors
        N, L, H, G = ctx.shape
        do = grads[0]
        delta = _fold_queries((do * o).sum(-1, keepdim=True), G)
        dob = _fold_queries(do, G)
        dv = torch.bmm(p.transpose(1, 2), dob)
        ds = _score_gradient(dob, vb, delta, p, squashed)
        dq = torch.bmm(ds, kb).mul_(ctx.scale)
        dk = torch.bmm(ds.transpose(1, 2), qb)
        dsinks = None if p_sink is None else _sink_gradient(p_sink, delta, N, H)
        return _unfold_queries(dq, N, L, H, G), _unfold_keys(dk, N, G), _unfold_keys(dv, N, G), dsinks, None


class _LongAttention(torch.autograd.Function):
    """The same for long documents: stretch by stretch of queries over the keys that they see; the backward computes probabilities again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks_H: Tensor | None, rules: Rules) -> Tensor:
        N, L, H, _ = q.shape
        G = k.shape[2]
        o = q.new_empty(N, L, H, v.shape[3])
        for a, b, c in _stretches(L, rules.window):
            qb, kb, vb = _fold_queries(q[:, a:b] * rules.scale, G), _fold_keys(k[:, c:b]), _fold_keys(v[:, c:b])
            p, _, _ = _probabilities(qb, kb, _causal_bias(a, b, c, b, rules.window, qb), rules.softcap, sinks_H)
            o[:, a:b] = _unfold_queries(torch.bmm(p, vb), N, b - a, H, G)
        ctx.save_for_backward(q, k, v, o, sinks_H)
        ctx.rules = rules
        return o

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        q, k, v, o, sinks_H = ctx.saved_tensors
        rules, do = ctx.rules, grads[0]
        N, L, H, _ = q.shape
        G = k.shape[2]
        # A key's gradient is a sum over stretches: in bf16 each addition would round.
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        dsinks = None if sinks_H is None else torch.zeros_like(sinks_H, dtype=torch.float32)
        for a, b, c in _stretches(L, rules.window):
            qb, kb, vb = _fold_queries(q[:, a:b] * rules.scale, G), _fold_keys(k[:, c:b]), _fold_keys(v[:, c:b])
            p, p_sink, squashed = _probabilities(qb, kb, _causal_bias(a, b, c, b, rules.window, qb), rules.softcap, sinks_H)
            dob = _fold_queries(do[:, a:b], G)
            delta = _fold_queries((do[:, a:b] * o[:, a:b]).sum(-1, keepdim=True), G)
            dv[:, c:b] += _unfold_keys(torch.bmm(p.transpose(1, 2), dob), N, G)
            ds = _score_gradient(dob, vb, delta, p, squashed)
            dq[:, a:b] = _unfold_queries(torch.bmm(ds, kb).mul_(rules.scale), N, b - a, H, G)
            dk[:, c:b] += _unfold_keys(torch.bmm(ds.transpose(1, 2), qb), N, G)
            if dsinks is not None and p_sink is not None:
                dsinks += _sink_gradient(p_sink, delta, N, H)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None if dsinks is None else dsinks.to(sinks_H.dtype), None


def _torch_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    o = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, scale=scale, enable_gqa=q.shape[2] != k.shape[2]
    )
    return o.transpose(1, 2)


def _stretches(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """(first query, end of queries, first key that the first query sees) of each stretch; its keys end where its queries do."""
    for a in range(0, length, STRETCH):
        yield a, min(a + STRETCH, length), 0 if window is None else max(0, a - window + 1)


# -- parts ------------------------------------------------------------------------------------------------------------


def _probabilities(
    qb: Tensor, kb: Tensor, bias_LK: Tensor, softcap: float | None, sinks_H: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What each query gives each key and the sink, and the squashed scores that the backward of a soft cap needs.

    Shapes: qb (N·G, H/G·L, D), kb (N·G, K, D) → p (N·G, H/G·L, K), p_sink (N·G, H/G·L, 1), squashed like p.
    """
    L, K = bias_LK.shape
    scores = torch.bmm(qb, kb.transpose(1, 2)).view(-1, L, K)
    squashed = None
    if softcap is not None:
        squashed = scores.div_(softcap).tanh_()
        scores = squashed * softcap
    scores = scores.add_(bias_LK)
    if sinks_H is None:
        return torch.softmax(scores, -1).view(*qb.shape[:2], K), None, _like(squashed, qb)
    # The sink is one more score with nothing behind it: it takes its share of the softmax and gives no value.
    sinks = sinks_H.to(scores.dtype).repeat(scores.shape[0] // sinks_H.numel())[:, None, None].expand(-1, L, 1)
    p = torch.softmax(torch.cat([scores, sinks], -1), -1).view(*qb.shape[:2], K + 1)
    return p[..., :K].contiguous(), p[..., K:], _like(squashed, qb)


def _like(squashed: Tensor | None, qb: Tensor) -> Tensor | None:
    return None if squashed is None else squashed.view(*qb.shape[:2], -1)


def _score_gradient(dob: Tensor, vb: Tensor, delta: Tensor, p: Tensor, squashed: Tensor | None) -> Tensor:
    """The gradient at the scores: through the softmax, and through the soft cap's tanh."""
    ds = torch.bmm(dob, vb.transpose(1, 2)).sub_(delta).mul_(p)
    return ds if squashed is None else ds.mul_(1.0 - squashed * squashed)


def _sink_gradient(p_sink: Tensor, delta: Tensor, N: int, H: int) -> Tensor:
    """The gradient at each head's sink, summed over N documents; folded rows are (N, H, L) in that order."""
    return (p_sink * delta).view(N, H, -1).sum((0, 2)).neg()


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


def _causal_bias(a: int, b: int, c: int, d: int, window: int | None, like: Tensor) -> Tensor:
    """0 where a query of [a, b) may see a key of [c, d), minus infinity elsewhere: causal, and at most `window` keys back."""
    rows = torch.arange(a, b, device=like.device)[:, None]
    columns = torch.arange(c, d, device=like.device)[None, :]
    hidden = columns > rows
    if window is not None and window < b:
        hidden |= columns <= rows - window
    return torch.zeros(b - a, d - c, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
