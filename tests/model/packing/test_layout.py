"""Where documents lie, for every backend: nothing lost, nothing twice."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.model.packing import Layout


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
@settings(deadline=None)
def test_layout_sends_every_token_out_and_back(lengths):
    layout = Layout.of(lengths)
    padded, real = layout.padded, sum(lengths)
    assert torch.equal(padded.to_padded_P[padded.to_flat_T], torch.arange(real))
    assert (padded.real_P is None and len(padded.to_padded_P) == real) or int(padded.real_P.sum()) == real
    for bucket in padded.buckets:
        assert bucket.length in lengths


def test_borders():
    layout = Layout.of([3, 1, 2])
    assert layout.borders_D.tolist() == [0, 3, 4, 6]
    assert layout.first_T.tolist() == [0, 0, 0, 3, 4, 4]
    assert (layout.tokens, layout.longest) == (6, 3)
