"""Replaced parts compute what the family's own compute, forward and backward; what is not known is left alone."""

from __future__ import annotations

import pytest
import torch

from cairn.model import fused, kernels
from cairn.model.fused import fuse, join_weights, joined_linear, restore
from cairn.model.head import cross_entropy, head_of
from cairn.model.packing import Layout, enable, probe

ALL = ["linear", "norms", "feed-forward", "attention"]
LENGTHS = (9, 40, 9, 2)

FAMILIES = [
    ("llama", {}, ALL),
    ("qwen3", {}, ALL),
    ("mistral", {"sliding_window": 3}, ALL),
    ("mistral", {"sliding_window": 30}, ALL),  # wider than what the check looks at
    ("olmo", {}, ["linear", "feed-forward", "attention"]),  # norms without weights
    ("olmo", {"clip_qkv": 0.05}, ["linear", "feed-forward"]),  # and clipped queries, keys and values
    ("olmo", {"clip_qkv": 8.0}, ["linear", "feed-forward"]),  # which small weights never reach
    ("qwen2", {}, ["linear", "norms", "feed-forward"]),  # a bias on queries, keys and values
    ("gemma", {}, ["linear", "attention"]),  # norms of (1 + weight), and GELU
    ("gpt_neox", {}, ["linear"]),
]


def states(model):
    """Hidden states and the loss over a packed row."""
    ids = torch.arange(sum(LENGTHS)) * 7 % 50
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    h = model.base_model(input_ids=ids[None], position_ids=positions, use_cache=False, packing=Layout.of(LENGTHS)).last_hidden_state[0]
    return h, cross_entropy(h, ids.roll(-1), head_of(model))[0]


def gradients(model):
    model.zero_grad()
    states(model)[1].backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "extra", "parts"), FAMILIES)
def test_values_and_gradients_are_the_familys_own(tiny, family, extra, parts):
    model = tiny(family=family, extra=extra)
    enable(model, "buckets")
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:  # norms start at one, where a wrong weight would not show
                p.add_(torch.linspace(-0.3, 0.4, p.numel()))
    h, loss = states(model)
    before = gradients(model)
    assert fuse(model, probe) == parts
    join_weights(model)
    again, same = states(model)
    torch.testing.assert_close(again, h, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(same, loss, rtol=1e-6, atol=0)
    after = gradients(model)
    assert after.keys() == before.keys()
    for name, g in before.items():
        torch.testing.assert_close(after[name], g, atol=1e-5 * float(g.abs().max()) + 1e-6, rtol=1e-4, msg=name)
    restore(model)
    assert not any("forward" in vars(m) for m in model.modules())
    torch.testing.assert_close(states(model)[0], h, atol=1e-6, rtol=1e-6)


def test_a_part_that_differs_is_put_back(tiny, monkeypatch):
    """The replacement is judged by what the model gives, not by what its modules are called."""
    model = tiny()
    enable(model, "buckets")
    monkeypatch.setattr(kernels, "gated_silu", lambda x: torch.nn.functional.gelu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1])
    assert fuse(model, probe) == ["linear", "norms", "attention"]
    assert "forward" not in vars(model.model.layers[0].mlp)


def test_neighbouring_weights_are_one_product(tiny):
    model = tiny()
    layers = [model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj]
    x = torch.linspace(-1, 1, 96).view(3, 32)
    apart = joined_linear(x, layers)
    values = [layer.weight.detach().clone() for layer in layers]
    assert not fused._neighbours([layer.weight for layer in layers])
    join_weights(model)
    assert fused._neighbours([layer.weight for layer in layers])
    assert all(torch.equal(layer.weight, value) for layer, value in zip(layers, values, strict=True))
    torch.testing.assert_close(joined_linear(x, layers), apart)
    with torch.no_grad():  # what an optimiser writes into the weights, the one product sees
        layers[1].weight.zero_()
    assert joined_linear(x, layers)[:, 64:].abs().max() == 0


def test_frozen_weights_get_no_gradient(tiny):
    model = tiny()
    enable(model, "buckets")
    fuse(model, probe)
    join_weights(model)
    model.requires_grad_(False)
    chosen = model.model.layers[0].self_attn.o_proj.weight
    chosen.requires_grad_(True)
    states(model)[1].backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["model.layers.0.self_attn.o_proj.weight"]


@pytest.mark.slow
def test_compiled_formulas_are_the_same(tiny):
    if not kernels.compiler_found():
        pytest.skip("no C++ compiler")
    model = tiny(family="qwen3")
    enable(model, "buckets")
    fuse(model, probe)
    h, _ = states(model)
    plain = gradients(model)
    with kernels.compiled(True):
        torch.testing.assert_close(states(model)[0], h, atol=1e-5, rtol=1e-5)
        for name, g in gradients(model).items():
            torch.testing.assert_close(g, plain[name], atol=1e-5, rtol=1e-4, msg=name)
