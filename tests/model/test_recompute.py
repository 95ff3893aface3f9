"""Blocks that compute their activations again: the same bits, less memory, and the blocks are found by structure."""

from __future__ import annotations

import pytest
import torch

from cairn.model.recompute import blocks_of, dimensions_of, keep_all, recompute


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "mistral"])
def test_blocks_are_found_and_sizes_read(tiny, family):
    model = tiny(family)
    assert len(blocks_of(model)) == 2
    sizes = dimensions_of(model)
    assert (sizes.layers, sizes.hidden, sizes.heads, sizes.intermediate, sizes.vocabulary) == (2, 32, 4, 64, 50)
    assert sizes.total == sum(p.numel() for p in model.parameters())


def test_gradients_are_the_same_bits_and_fewer_tensors_are_kept(tiny):
    ids = torch.arange(12)[None] % 50
    grads, kept = [], []
    for count in (0, 1, 2):
        model = tiny().train()
        recompute(model, count)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            loss = model(input_ids=ids, use_cache=False).logits.square().mean()
        loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
        kept.append(sum(saved))
        keep_all(model)
        assert all("forward" not in vars(block) for block in blocks_of(model))
    for other in grads[1:]:
        assert all(torch.equal(other[name], g) for name, g in grads[0].items())
    assert kept[2] < kept[1] < kept[0]
