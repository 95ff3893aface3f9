"""Matrices in 4 bits: how far they are rounded, and that a product with one is a product with what it was rounded to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cairn.model.nf4 import BLOCK, CODES, NF4Linear, count_weights, dequantise, quantise, quantise_linears, write_out_linears


def normal(*shape, seed=0, scale=0.02):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 150), seed=st.integers(0, 9))
def test_every_weight_goes_to_the_nearest_code_of_its_block(rows, columns, seed):
    weight = normal(rows, columns, seed=seed)
    codes, scales = quantise(weight)
    assert codes.numel() == scales.numel() * BLOCK // 2
    found = dequantise(codes, scales, (rows, columns)).float()
    scale = scales.float().repeat_interleave(BLOCK)[: weight.numel()].view_as(weight)
    nearest = (weight[..., None] - scale[..., None] * torch.tensor(CODES)).abs().amin(-1)
    # The value itself is rounded to bf16 twice, eight bits each.
    torch.testing.assert_close((weight - found).abs(), nearest, rtol=0, atol=float(scale.max()) * 2**-7)


def test_normal_weights_lose_nine_percent():
    weight = normal(256, 256)
    found = dequantise(*quantise(weight), (256, 256)).float()
    assert float((found - weight).norm() / weight.norm()) == pytest.approx(0.092, abs=0.005)
    assert torch.equal(dequantise(*quantise(torch.zeros(3, 5)), (3, 5)), torch.zeros(3, 5, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_gradient_are_those_of_the_written_out_layer(dtype, bias):
    plain = nn.Linear(70, 30, bias=bias)
    nn.init.normal_(plain.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    held = NF4Linear(plain)
    written = held.plain()
    for layer in (held, written):
        for p in layer.parameters():
            p.data = p.data.to(dtype)
    ours, theirs = (normal(5, 70, scale=1.0).to(dtype).requires_grad_() for _ in range(2))
    a, b = held(ours), written(theirs)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(a, b)
    assert torch.equal(ours.grad, theirs.grad)
    assert not any(p.requires_grad for p in held.parameters())


def test_a_model_takes_a_quarter_of_16_bits_and_comes_back(tiny):
    model = tiny()
    count = count_weights(model)
    rounded, _ = quantise_linears(model.base_model)
    assert rounded == 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert count_weights(model) == count
    held = sum(b.numel() * b.element_size() for n, b in model.named_buffers() if n.endswith(("codes", "scales")))
    assert held * 8 / rounded == 4.25
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids).logits
        write_out_linears(model)
        assert not any(isinstance(m, NF4Linear) for m in model.modules())
        torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-5)
