"""Our AdamW: torch's where both can, bf16 weights that go forward on average, and states of few bytes."""

from __future__ import annotations

import pytest
import torch

from cairn.train.adamw import AdamW
from cairn.train.rounding import Draws


def ours(p, *, coded=False, lr=0.01):
    optimizer = AdamW([{"params": [p], "weight_decay": 0.5}], (0.9, 0.95), 1e-8, Draws(0, {"p": p}), coded=coded)
    optimizer.param_groups[0]["lr"] = lr
    return optimizer


@pytest.mark.parametrize("coded", [False, True])
def test_it_moves_as_torch_does(coded):
    """With 8-bit moments, in the direction of torch's and as far, within the error of the codes."""
    p, q = (torch.ones(4, 300).requires_grad_() for _ in range(2))
    optimizer = ours(p, coded=coded)
    peer = torch.optim.AdamW([q], lr=0.01, betas=(0.9, 0.95), weight_decay=0.5)
    for step in range(20):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        q.grad = p.grad.clone()
        optimizer.draws.step = step
        optimizer.step()
        peer.step()
    if not coded:
        torch.testing.assert_close(p, q)
    a, b = p.detach() - 1, q.detach() - 1
    assert (a - b).norm() < 0.05 * b.norm()


def test_updates_below_half_a_step_of_bf16_count_on_average():
    p = torch.ones(100, 100, dtype=torch.bfloat16).requires_grad_()
    optimizer = ours(p, lr=1e-4)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    for step in range(20):
        p.grad = torch.ones_like(p)
        optimizer.draws.step = step
        optimizer.step()
    # Each update is 1e-4 and the neighbour of 1 is 4e-3 away: rounded to the nearest, nothing would ever move.
    assert float((1 - p.detach().float()).mean()) == pytest.approx(20e-4, rel=0.1)
