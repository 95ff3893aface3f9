"""The three products of a linear layer: those of plain torch for every size, whoever computes, and nothing beside their place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.model.fused import _Linear
from cairn.model.native import products
from cairn.model.native import train as native

pytestmark = pytest.mark.skipif(bool(products.missing()), reason=products.missing())


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def close(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    assert mine.dtype == torch.bfloat16
    assert mine.shape == theirs.shape
    assert float((mine.float() - theirs).abs().max()) <= 8e-3 * float(theirs.abs().max())


def agree(T: int, outs: int, ins: int) -> None:
    x, w, g = some(T, ins), some(outs, ins, seed=1), some(T, outs, seed=2)
    close(products.forward(x, w), x.float() @ w.float().t())
    close(products.input_gradient(g, w), g.float() @ w.float())
    close(products.weight_gradient(g, x), g.float().t() @ x.float())


@given(T=st.integers(1, 140), outs=st.integers(1, 13), ins=st.integers(1, 13))
@settings(max_examples=40, deadline=None)
def test_any_size(T, outs, ins):
    agree(T, 16 * outs, 16 * ins)


@pytest.mark.parametrize(
    ("T", "outs", "ins"),
    [
        (1031, 2080, 2128),  # every sum in two depths, rows in three parts
        (2049, 48, 16),  # a row without its pair behind the first depth
        (130, 4160, 96), (130, 96, 4160), (8, 16, 6208),
    ],
)  # fmt: skip
def test_sums_of_more_than_one_depth(T, outs, ins):
    agree(T, outs, ins)


def test_rows_may_lie_apart_and_nothing_else_is_touched():
    wide, w = some(70, 200), some(48, 64, seed=1)
    out = torch.full((70, 100), 7.0, dtype=torch.bfloat16)
    products.forward(wide[:, 100:164], w, out[:, 10:58])
    close(out[:, 10:58], wide[:, 100:164].float() @ w.float().t())
    assert (out[:, :10] == 7.0).all()
    assert (out[:, 58:] == 7.0).all()
    close(products.weight_gradient(wide[:, 3:51], wide[:, 100:164]), wide[:, 3:51].float().t() @ wide[:, 100:164].float())
    close(products.forward(some(64, 70).t(), w), some(64, 70).t().float() @ w.float().t())


def test_threads_and_other_rows_change_no_bit():
    x, w, g = some(300, 2080), some(96, 2080, seed=1), some(300, 96, seed=2)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.append([products.forward(x, w), products.input_gradient(g, w), products.weight_gradient(g, x)])
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert torch.equal(products.forward(x[:101], w), found[0][0][:101])


def test_what_is_not_finite_stays_so():
    x, w = some(64, 32), some(16, 32, seed=1)
    x[3, 5] = float("nan")
    assert products.forward(x, w)[3].isnan().all()
    assert products.forward(x, w)[4].isfinite().all()


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_uses_them_where_kernels_are_on_and_gives_what_it_gave(monkeypatch, bias):
    used, own = [], {name: getattr(products, name) for name in ("forward", "input_gradient", "weight_gradient")}
    for name in own:
        monkeypatch.setattr(products, name, lambda *told, name=name: (used.append(name), own[name](*told))[1])
    b = some(48, seed=3) if bias else None
    for on in (False, True):
        leaves = [some(1, 66, 32).requires_grad_(), some(48, 32, seed=1).requires_grad_()]
        with native.switched(on):
            y = _Linear.apply(leaves[0], b, leaves[1])
            y.backward(some(1, 66, 48, seed=2))
        assert used == (["forward", "input_gradient", "weight_gradient"] if on and not bias else [])
        close(y[0].detach(), leaves[0][0].detach().float() @ leaves[1].detach().float().t() + (0 if b is None else b.float()))
        close(leaves[0].grad[0], some(66, 48, seed=2).float() @ leaves[1].detach().float())
        close(leaves[1].grad, some(66, 48, seed=2).float().t() @ leaves[0][0].detach().float())


def test_a_kernel_that_computes_something_else_is_not_trusted(monkeypatch):
    right = products.input_gradient
    monkeypatch.setattr(products, "input_gradient", lambda *told: 1.1 * right(*told))
    assert "product's input differs" in products._trial()
