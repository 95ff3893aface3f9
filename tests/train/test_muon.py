"""Muon: its orthogonal updates, its momentum, and batches of matrices that change nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cairn.train import muon
from cairn.train.muon import Muon, orthogonalise
from cairn.train.rounding import Draws


@given(st.integers(2, 20), st.integers(2, 20))
def test_orthogonalised_matrices_have_singular_values_near_one(rows, columns):
    x = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(rows * 100 + columns)) + torch.eye(rows, columns)
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.max() < 1.35
    assert values[:, 0].min() > 0.5


def step_twice(named, **settings):
    """Two updates with gradients that are a function of the name."""
    optimizer = Muon([{"params": list(named.values()), "peak": 0.1, "weight_decay": 0.5}], 0.9, Draws(0, named), **settings)
    for step in range(2):
        for i, p in enumerate(named.values()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i))
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
    return optimizer


def test_an_update_is_that_of_the_paper():
    p = torch.ones(4, 2, requires_grad=True)
    step_twice({"p": p})
    weight, average = torch.ones(4, 2), torch.zeros(4, 2)
    for step in range(2):
        grad = torch.randn(4, 2, generator=torch.Generator().manual_seed(10 * step))
        average = 0.9 * average + 0.1 * grad
        weight = weight * (1 - 0.1 * 0.5) - 0.1 * 2**0.5 * orthogonalise((0.1 * grad + 0.9 * average)[None])[0]
    torch.testing.assert_close(p.detach(), weight)


def test_weights_move_alike_in_large_and_small_stacks(monkeypatch: pytest.MonkeyPatch):
    def weights():
        return {f"{i}": torch.ones(8, 8, requires_grad=True) for i in range(5)}

    together, apart = weights(), weights()
    step_twice(together)
    monkeypatch.setattr(muon, "STACK", 2 * 64)
    step_twice(apart)
    for name, p in together.items():
        torch.testing.assert_close(p, apart[name], rtol=0.02, atol=2e-3)
