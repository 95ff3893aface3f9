"""flex attention: its block mask is exactly the documents' mask, and its forward (all that runs without CUDA) is right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.model.packing import Layout, flex
from cairn.model.packing.rules import Rules

from .plain import reference, tensors


def blocks(counts, indices):
    """A table of blocks from its list form."""
    counts, indices = counts[0, 0], indices[0, 0]
    table = torch.zeros(len(counts), len(counts), dtype=torch.bool)
    for row, count in enumerate(counts.tolist()):
        table[row, indices[row, :count].long()] = True
    return table


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), window=st.sampled_from([None, 1, 6, 20]))
def test_blocks_cover_what_is_seen_and_whole_ones_hide_nothing(lengths, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "BLOCK", 8)
        mask = flex.block_mask(Layout.of(lengths), window)
    total = sum(lengths)
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    i, j = torch.arange(total)[:, None], torch.arange(total)[None, :]
    seen = (j <= i) & (document[:, None] == document[None, :]) & (i - j < (window or total))
    assert torch.equal(mask.mask_mod(None, None, i, j), seen)
    partial, whole = blocks(mask.kv_num_blocks, mask.kv_indices), blocks(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (partial & whole).any()
    for row, queries in enumerate(seen.split(8)):
        for column, part in enumerate(queries.split(8, dim=1)):
            assert bool(part.any()) == bool(partial[row, column] | whole[row, column])
            assert not whole[row, column] or bool(part.all())


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_forward_is_that_of_each_document_alone(window, softcap):
    lengths = [150, 3, 40]
    q, k, v = (x.detach() for x in tensors(sum(lengths), 4, 2, 16))
    got = flex.attend(q, k, v, Layout.of(lengths), Rules(0.3, window, softcap))
    torch.testing.assert_close(got, reference(q, k, v, lengths, 0.3, window, softcap).float(), atol=2e-5, rtol=1e-4)


def test_sinks_take_their_share(monkeypatch):
    """Without CUDA flex attention gives no log-sums; a stand-in gives them, for the arithmetic that follows."""
    lengths, sinks = [9, 14], torch.tensor([-0.5, 0.0, 1.0, 2.0])
    q, k, v = (x.detach() for x in tensors(23, 4, 2, 16))

    def with_sums(q, k, v, *, score_mod, block_mask, scale, enable_gqa, return_aux):
        i, j = torch.arange(23)[:, None], torch.arange(23)[None, :]
        scores = (q @ k.repeat_interleave(2, 1).transpose(2, 3) * scale).masked_fill(~block_mask.mask_mod(0, 0, i, j), float("-inf"))
        return scores.softmax(-1) @ v.repeat_interleave(2, 1), type("Aux", (), {"lse": scores.logsumexp(-1)})

    monkeypatch.setattr(flex, "flex_attention", with_sums)
    got = flex.attend(q, k, v, Layout.of(lengths), Rules(0.3, sinks_H=sinks))
    torch.testing.assert_close(got, reference(q, k, v, lengths, 0.3, sinks=sinks).float(), atol=2e-5, rtol=1e-4)
