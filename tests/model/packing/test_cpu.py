"""Bucketed attention: equal to attention of each document alone, in value and gradient, whatever the rules and lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.model.packing import Layout, cpu, packed_attention

from .plain import reference, tensors


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
       window=st.sampled_from([None, 1, 5]), softcap=st.sampled_from([None, 0.7]), sinks=st.booleans(),
       value_size=st.sampled_from([8, 12]), short=st.sampled_from([8, 512]))  # fmt: skip
def test_values_and_gradients_are_those_of_each_document_alone(lengths, heads, window, softcap, sinks, value_size, short):
    q, k, v = tensors(sum(lengths), *heads, value_size=value_size)
    leaves = [q, k, v]
    if sinks:
        leaves.append(torch.linspace(-1, 1, heads[0]).requires_grad_())
    sink = leaves[3] if sinks else None
    expected = reference(q, k, v, lengths, 0.3, window, softcap, sink)
    weights = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "SHORT", short)
        patch.setattr(cpu, "STRETCH", 7)
        got = packed_attention(q, k, v, Layout.of(lengths), 0.3, window, softcap=softcap, sinks_H=sink)
        found = torch.autograd.grad((got * weights).sum(), leaves)
    torch.testing.assert_close(got, expected.float(), atol=2e-5, rtol=1e-4)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs.float(), atol=5e-5, rtol=1e-4)


def test_memory_of_a_long_windowed_document_grows_with_its_length_not_its_square():
    """What the backward needs is kept: inputs and output, no scores."""
    kept = []
    q, k, v = tensors(2048, 2, 1)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        packed_attention(q, k, v, Layout.of([2048]), 0.3, 64, softcap=5.0)
    assert max(kept) <= 2048 * 2 * 8
