"""Masters: what is moved and what computes; frozen weights; clipping."""

from __future__ import annotations

import pytest
import torch

from cairn.train.masters import Masters, clipping


def test_masters_keep_what_bf16_would_round_away():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    masters = Masters(layer, torch.bfloat16)
    for _ in range(10):
        masters.named["weight"].add_(1e-3)
        masters.publish()
    assert masters.named["weight"].item() == pytest.approx(1.01, rel=1e-5)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.weight.item() == pytest.approx(1.0078125)


def test_gradients_of_micro_batches_add_up_in_fp32():
    layer = torch.nn.Linear(1, 1, bias=False)
    masters = Masters(layer, torch.bfloat16)
    for value in (1.0, 2.0**-10):
        layer.weight.grad = torch.full((1, 1), value, dtype=torch.bfloat16)
        masters.collect()
        assert layer.weight.grad is None
    assert masters.gradients["weight"].item() == 1.0 + 2.0**-10
    masters.clear()
    assert not masters.gradients


def test_the_gradient_of_one_backward_is_not_copied():
    layer = torch.nn.Linear(1, 1, bias=False)
    masters = Masters(layer, torch.bfloat16)
    given = layer.weight.grad = torch.ones(1, 1, dtype=torch.bfloat16)
    masters.collect()
    assert masters.gradients["weight"] is given


def test_what_was_published_already_is_left_alone():
    layer = torch.nn.Linear(1, 1)
    masters = Masters(layer, torch.bfloat16)
    for tensor in masters.named.values():
        tensor.fill_(7.0)
    masters.publish({"bias"})
    assert layer.weight.item() == 7.0
    assert layer.bias.item() != 7.0


def test_pure_bf16_moves_the_weights_that_compute():
    layer = torch.nn.Linear(2, 2)
    masters = Masters(layer, torch.bfloat16, pure=True)
    assert all(masters.named[name] is p and p.dtype == torch.bfloat16 for name, p in layer.named_parameters())


def test_frozen_weights_are_no_masters_and_quantised_ones_keep_their_numbers():
    layer = torch.nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    codes = torch.tensor([[1, 200]], dtype=torch.uint8)
    layer.packed = torch.nn.Parameter(codes.clone(), requires_grad=False)
    layer.small = torch.nn.Parameter(torch.ones(2).to(torch.float8_e4m3fn), requires_grad=False)
    masters = Masters(layer, torch.bfloat16)
    assert list(masters.named) == ["bias"]
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.packed, codes)
    assert layer.small.dtype == torch.float8_e4m3fn


def test_clipping():
    gradients = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    assert clipping(gradients, 0.0) == (pytest.approx(5.0), 1.0)
    assert clipping(gradients, 5.0) == (pytest.approx(5.0), 1.0)
    assert clipping(gradients, 1.0) == (pytest.approx(5.0), pytest.approx(0.2, rel=1e-4))
    assert clipping(gradients, 1.0, lambda square: 4 * square) == (pytest.approx(10.0), pytest.approx(0.1, rel=1e-4))
    assert clipping({}, 1.0) == (0.0, 1.0)


def test_the_norm_of_bf16_gradients_is_not_rounded_to_bf16():
    assert clipping({"a": torch.ones(1000, dtype=torch.bfloat16)}, 0.0)[0] == pytest.approx(1000**0.5, rel=1e-6)
