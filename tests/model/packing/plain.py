"""What the tests of packed attention share: every document alone, scores in full, fp64; and random tensors to compare on."""

from __future__ import annotations

import torch


def reference(q, k, v, lengths, scale, window=None, softcap=None, sinks=None):
    """Attention as the papers write it, one document after the other."""
    outs, at = [], 0
    for n in lengths:
        qd, kd, vd = (x[at : at + n].double() for x in (q, k, v))
        repeat = q.shape[1] // k.shape[1]
        kd, vd = kd.repeat_interleave(repeat, 1), vd.repeat_interleave(repeat, 1)
        scores = torch.einsum("qhd,khd->hqk", qd, kd) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
        hidden = (j > i) | ((j <= i - window) if window is not None else torch.zeros(n, n, dtype=torch.bool))
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, n, 1)], -1)
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :n], vd))
        at += n
    return torch.cat(outs)


def tensors(total, heads, groups, size=8, value_size=None):
    draw = torch.Generator().manual_seed(total * 31 + heads)
    shapes = [(heads, size), (groups, size), (groups, value_size or size)]
    return [torch.randn(total, *shape, generator=draw, requires_grad=True) for shape in shapes]
