"""The chunked loss: equal to torch's own in value and gradient, whatever the chunking; the head equals the model's."""

from __future__ import annotations

import pytest
import torch

from cairn.model import head as room
from cairn.model.head import Head, cross_entropy_sum, head_agrees, head_of


@pytest.mark.parametrize("chunk", [3, 7, 100])
@pytest.mark.parametrize(("scale", "softcap", "bias"), [(1.0, None, False), (0.5, None, True), (1.0, 5.0, False), (2.0, 3.0, True)])
def test_value_and_gradients(monkeypatch, chunk, scale, softcap, bias):
    monkeypatch.setattr(room, "CHUNK", chunk)
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(17, 8, generator=draw, requires_grad=True)
    w = torch.randn(11, 8, generator=draw, requires_grad=True)
    b = torch.randn(11, generator=draw, requires_grad=True) if bias else None
    targets = torch.arange(17) % 11
    head = Head(w, b, scale, softcap)
    leaves = [x for x in (h, w, b) if x is not None]
    mine = cross_entropy_sum(h, targets, head)
    plain = torch.nn.functional.cross_entropy(head.logits(h), targets, reduction="sum")
    torch.testing.assert_close(mine, plain)
    for a, c in zip(torch.autograd.grad(mine * 0.5, leaves), torch.autograd.grad(plain * 0.5, leaves), strict=True):
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-4)


def test_no_target_gives_zero_and_no_gradient():
    h, w = torch.randn(0, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    loss = cross_entropy_sum(h, torch.zeros(0, dtype=torch.long), Head(w))
    loss.backward()
    assert loss.item() == 0
    assert w.grad.abs().max() == 0


def test_the_largest_tensor_does_not_grow_with_positions(monkeypatch):
    """Logits of a chunk at a time: no tensor of positions × vocabulary is ever made."""
    sizes = []
    real = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda z, *a, **k: (sizes.append(z.shape[0]), real(z, *a, **k))[1])
    h = torch.randn(5000, 4, requires_grad=True)
    cross_entropy_sum(h, torch.zeros(5000, dtype=torch.long), Head(torch.randn(9, 4, requires_grad=True)))
    assert sum(sizes) == 5000
    assert max(sizes) == room.CHUNK


HEADS = [
    ("llama", {}),
    ("gemma2", {"final_logit_softcapping": 2.0}),
    ("cohere", {"logit_scale": 0.3}),
    ("granite", {"logits_scaling": 4.0}),
    ("gpt_neox", {}),
]


@pytest.mark.parametrize(("family", "extra"), HEADS)
def test_head_of_families(tiny, family, extra):
    model = tiny(family=family, extra=extra)
    assert head_agrees(model)
    assert head_of(model).weight_VD.shape == (50, 32)


def test_a_head_that_differs_is_found(tiny):
    model = tiny()
    model.config.final_logit_softcapping = 0.1  # the model itself does not apply it
    assert not head_agrees(model)
