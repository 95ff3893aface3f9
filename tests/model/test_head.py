"""The chunked loss: equal to torch's own in value and gradient, whatever the chunking; the head equals the model's."""

from __future__ import annotations

import pytest
import torch

from cairn.model import head as room
from cairn.model.head import Head, cross_entropy, head_agrees, head_of, log_probabilities


def _same_gradients(mine, plain, leaves):
    ours, theirs = torch.autograd.grad(mine, leaves), torch.autograd.grad(plain, leaves, retain_graph=True)
    for a, c in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [33, 77, 1100])
@pytest.mark.parametrize(("scale", "softcap", "bias"), [(1.0, None, False), (0.5, None, True), (1.0, 5.0, False), (2.0, 3.0, True)])
def test_value_and_gradients(monkeypatch, chunk, scale, softcap, bias):
    monkeypatch.setattr(room, "LOGITS", chunk)
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(17, 8, generator=draw, requires_grad=True)
    w = torch.randn(11, 8, generator=draw, requires_grad=True)
    b = torch.randn(11, generator=draw, requires_grad=True) if bias else None
    targets = torch.arange(17) % 11
    head = Head(w, b, scale, softcap)
    leaves = [x for x in (h, w, b) if x is not None]
    mine, each = cross_entropy(h, targets, head)
    plain = torch.nn.functional.cross_entropy(head.logits(h), targets, reduction="none")
    torch.testing.assert_close(mine, plain.sum())
    torch.testing.assert_close(each, plain)
    _same_gradients(mine * 0.5, plain.sum() * 0.5, leaves)
    # Any function of the single log-probabilities, as preferences make one.
    some, weights = log_probabilities(h, targets, head), torch.linspace(-1, 2, 17)
    torch.testing.assert_close(some, -plain)
    _same_gradients((some * weights).sum(), (-plain * weights).sum(), leaves)


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_z_loss(softcap):
    draw = torch.Generator().manual_seed(1)
    h, w = torch.randn(9, 6, generator=draw, requires_grad=True), torch.randn(13, 6, generator=draw, requires_grad=True)
    targets, head = torch.arange(9), Head(w, None, 1.0, softcap)
    mine, each = cross_entropy(h, targets, head, z_loss=0.3)
    z = head.logits(h)
    plain = torch.nn.functional.cross_entropy(z, targets, reduction="sum")
    torch.testing.assert_close(each.sum(), plain)
    plain = plain + 0.3 * torch.logsumexp(z, -1).square().sum()
    torch.testing.assert_close(mine, plain)
    _same_gradients(mine, plain, [h, w])


@pytest.mark.parametrize("chunk", [30, 1 << 20])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_positions_that_count_differently(monkeypatch, chunk, softcap):
    monkeypatch.setattr(room, "LOGITS", chunk)
    draw = torch.Generator().manual_seed(2)
    h, w = torch.randn(9, 6, generator=draw, requires_grad=True), torch.randn(13, 6, generator=draw, requires_grad=True)
    targets, head, counts = torch.arange(9), Head(w, None, 1.0, softcap), torch.linspace(0.1, 2, 9)
    mine, each = cross_entropy(h, targets, head, 0.3, counts)
    z = head.logits(h)
    plain = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    torch.testing.assert_close(each, plain)
    whole = (counts * (plain + 0.3 * torch.logsumexp(z, -1).square())).sum()
    torch.testing.assert_close(mine, whole)
    _same_gradients(mine, whole, [h, w])


def test_no_target_gives_zero_and_no_gradient():
    h, w = torch.randn(0, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    loss, _ = cross_entropy(h, torch.zeros(0, dtype=torch.long), Head(w))
    loss.backward()
    assert loss.item() == 0
    assert w.grad.abs().max() == 0


@pytest.mark.parametrize("vocabulary", [16, 4096])
def test_the_largest_tensor_grows_with_neither_positions_nor_vocabulary(monkeypatch, vocabulary):
    """Logits of a chunk at a time: no tensor of positions × vocabulary is ever made."""
    sizes = []
    real = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda z, *a, **k: (sizes.append(z.numel()), real(z, *a, **k))[1])
    monkeypatch.setattr(room, "LOGITS", 1 << 14)
    h = torch.randn(3000, 4, requires_grad=True)
    cross_entropy(h, torch.zeros(3000, dtype=torch.long), Head(torch.randn(vocabulary, 4, requires_grad=True)))
    assert sum(sizes) == 3000 * vocabulary
    assert max(sizes) == 1 << 14


def test_a_second_gradient_of_one_sum_is_refused():
    """The gradient is scaled where it lies: a second pass would scale it twice."""
    h, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    total, _ = cross_entropy(h, torch.arange(3), Head(w))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already taken"):
        total.backward()


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


@pytest.mark.parametrize("chunk", [33, 1100])
@pytest.mark.parametrize(("scale", "softcap", "bias"), [(1.0, None, False), (0.5, 4.0, True)])
def test_a_sum_of_any_losses_of_the_logits(monkeypatch, chunk, scale, softcap, bias):
    monkeypatch.setattr(room, "LOGITS", chunk)
    monkeypatch.setattr(room, "FEWEST", 2)
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(17, 8, generator=draw, requires_grad=True)
    w = torch.randn(11, 8, generator=draw, requires_grad=True)
    b = torch.randn(11, generator=draw, requires_grad=True) if bias else None
    other, head = torch.randn(17, 11, generator=draw), Head(w, b, scale, softcap)
    seen = []

    def loss_of(z, part):
        seen.append(z.shape[0])
        return (z.softmax(-1) * other[part]).sum(-1) ** 2, torch.stack([z[:, 0], z[:, 1]], -1)

    mine, told = room.summed(h, head, loss_of)
    assert max(seen) <= max(1, chunk // 11)
    assert sum(seen) == 17
    z = head.logits(h)
    plain = ((z.softmax(-1) * other).sum(-1) ** 2).sum()
    torch.testing.assert_close(mine, plain)
    torch.testing.assert_close(told, z[:, :2].detach())
    _same_gradients(mine * 0.5, plain * 0.5, [x for x in (h, w, b) if x is not None])
