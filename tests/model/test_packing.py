"""Packed attention: equal to attention of each document alone, in value and gradient, and blind across borders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.model import packing
from cairn.model.packing import Layout, enable, packed_attention, packs_cleanly


def reference(q, k, v, lengths, scale, window):
    """Every document alone, scores in full, fp64."""
    outs, at = [], 0
    for n in lengths:
        qd, kd, vd = (x[at : at + n].double() for x in (q, k, v))
        repeat = q.shape[1] // k.shape[1]
        kd, vd = kd.repeat_interleave(repeat, 1), vd.repeat_interleave(repeat, 1)
        scores = torch.einsum("qhd,khd->hqk", qd, kd) * scale
        i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
        hidden = (j > i) | ((j <= i - window) if window is not None else torch.zeros(n, n, dtype=torch.bool))
        outs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), vd))
        at += n
    return torch.cat(outs)


def tensors(total, heads, groups, size=8):
    draw = torch.Generator().manual_seed(total * 31 + heads)
    return [torch.randn(total, h, size, generator=draw, requires_grad=True) for h in (heads, groups, groups)]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
       window=st.sampled_from([None, 1, 5]), short=st.sampled_from([8, 512]))  # fmt: skip
def test_values_and_gradients_are_those_of_each_document_alone(lengths, heads, window, short):
    q, k, v = tensors(sum(lengths), *heads)
    weights = torch.linspace(-1, 1, q.numel()).view_as(q)
    expected = reference(q, k, v, lengths, 0.3, window)
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    before, packing.SHORT = packing.SHORT, short
    try:
        got = packed_attention(q, k, v, Layout.of(lengths), 0.3, window)
        found = torch.autograd.grad((got * weights).sum(), (q, k, v))
    finally:
        packing.SHORT = before
    torch.testing.assert_close(got, expected.float(), atol=2e-5, rtol=1e-4)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs.float(), atol=2e-5, rtol=1e-4)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
@settings(deadline=None)
def test_layout_sends_every_token_out_and_back(lengths):
    layout = Layout.of(lengths)
    assert torch.equal(layout.to_padded_P[layout.to_flat_T], torch.arange(sum(lengths)))
    real = sum(lengths)
    assert (layout.real_P is None and len(layout.to_padded_P) == real) or int(layout.real_P.sum()) == real
    for bucket in layout.buckets:
        assert bucket.length in lengths


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "mistral"])
def test_families_that_pack(tiny, family):
    extra = {"sliding_window": None} if family == "mistral" else {}
    model = tiny(family=family, extra=extra)
    enable(model)
    assert packs_cleanly(model)


@pytest.mark.parametrize("family", ["gemma2", "mpt", "mamba"])
def test_families_that_would_leak_or_differ_are_refused(tiny, family):
    """Gemma 2 caps its scores, MPT has ALiBi, Mamba carries a state: none may be packed silently."""
    names = {"mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, "mamba": {"state_size": 8}}
    model = tiny(family=family, extra=names.get(family, {}))
    from cairn.train.loop import _try_packing

    assert _try_packing(model) is False


def test_a_leak_is_found(tiny):
    """The check itself can fail: attention over the whole row, borders ignored, is caught."""
    model = tiny()
    enable(model)
    honest = Layout.of
    try:
        packing.Layout.of = staticmethod(lambda lengths, device="cpu": honest([sum(lengths)], device))
        assert not packs_cleanly(model)
    finally:
        packing.Layout.of = honest
    assert packs_cleanly(model)
