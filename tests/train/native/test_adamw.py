"""AdamW in one pass over memory: the bits of clipping, torch's fused AdamW and rounding, one after the other."""

from __future__ import annotations

import math

import pytest
import torch

from cairn.model.native import build
from cairn.train.adamw import OnePassAdamW
from cairn.train.config import OptimizerConfig
from cairn.train.masters import clipping
from cairn.train.native import adamw as native
from cairn.train.optim import Optimizer

RULES = {"betas": (0.9, 0.95), "eps": 1e-8}
needs = pytest.mark.skipif(bool(native.missing()), reason=native.missing())


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs
@pytest.mark.parametrize("shape", [(48,), (64, 48), (1000, 112)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_the_bits_of_clipping_torch_and_rounding(shape, dtype):
    mine, theirs = drawn(shape, 0), drawn(shape, 0)
    mean, squares, low = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.bfloat16)
    peer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, fused=True, **RULES)
    for count in range(1, 5):
        grad = drawn(shape, count).to(dtype)
        theirs.grad = grad.float() * 0.3
        peer.step()
        native.step(mine, mean, squares, grad, low, count=count, shrink=0.3, lr=0.01, decay=0.1, **RULES)
    assert torch.equal(mine, theirs)
    assert torch.equal(low, theirs.bfloat16())
    assert torch.equal(mean, peer.state[theirs]["exp_avg"])
    assert torch.equal(squares, peer.state[theirs]["exp_avg_sq"])


@needs
@pytest.mark.parametrize("size", [1, 15, 17, 31, (1 << 15) - 1, (1 << 15) + 3, 3 * (1 << 15) + 5])
def test_what_is_left_over_is_moved_and_nothing_behind_it(size):
    room = {name: torch.full((size + 32,), 7.0) for name in ("weight", "mean", "squares")}
    low = torch.full((size + 32,), 7.0, dtype=torch.bfloat16)
    parts = {name: tensor[:size] for name, tensor in room.items()}
    for tensor in parts.values():
        tensor.zero_()
    native.step(**parts, grad=torch.ones(size), low=low[:size], count=1, shrink=1.0, lr=0.5, decay=0.0, **RULES)
    torch.testing.assert_close(parts["weight"], torch.full((size,), -0.5))
    assert torch.equal(low[:size], parts["weight"].bfloat16())
    assert all((tensor[size:] == 7.0).all() for tensor in (*room.values(), low))


@needs
@pytest.mark.parametrize("size", [1, 16, 63, 65, (1 << 15) + 17, 100_001])
def test_the_sum_of_squares(size):
    room = torch.full((size + 32,), 1e30, dtype=torch.bfloat16)
    grad = room[:size]
    grad.copy_(drawn((size,), size))
    assert native.square_sum(grad) == pytest.approx(float(grad.double().square().sum()), rel=1e-6)
    gradients = {"a": grad, "b": grad}
    assert clipping(gradients, 1.0, own=True) == pytest.approx(clipping(gradients, 1.0), rel=1e-5)
    grad[size // 2] = float("nan")
    assert math.isnan(native.square_sum(grad))
    assert math.isnan(clipping(gradients, 1.0, own=True)[0])


@needs
def test_threads_change_no_bit():
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        weight, mean, squares = drawn((300, 500), 0), torch.zeros(300, 500), torch.zeros(300, 500)
        native.step(weight, mean, squares, drawn((300, 500), 1), None, count=1, shrink=1.0, lr=0.1, decay=0.1, **RULES)
        torch.set_num_threads(before)
        found.append((weight, native.square_sum(drawn((300, 500), 1).bfloat16())))
    assert found[0][1] == found[1][1] == found[2][1]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][0], found[2][0])


def made(low: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Optimizer]:
    named = {"matrix": drawn((32, 48), 0), "norm": drawn((48,), 1), "late": drawn((16, 16), 2)}
    copies = {name: p.bfloat16() for name, p in named.items()}
    return named, copies, Optimizer(OptimizerConfig(kind="adamw", weight_decay=0.1), named, None, None, low=copies if low else None)


def gradients(number: int, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {name: drawn(tuple(p.shape), 10 * number + i).bfloat16() for i, (name, p) in enumerate(named.items())}
    return {name: g for name, g in found.items() if number > 1 or name != "late"}


@needs
def test_the_optimiser_uses_it_where_weights_have_copies_and_goes_on_with_either():
    (ours, copies, first), (theirs, _, second) = made(low=True), made(low=False)
    assert [type(part) for part in first._parts] == [OnePassAdamW]
    for number in range(3):
        assert first.step(0.5, number, gradients(number, ours), 0.7) == set(ours) - ({"late"} if number < 2 else set())
        assert second.step(0.5, number, gradients(number, theirs), 0.7) == set()
    assert all(torch.equal(p, theirs[name]) for name, p in ours.items())
    assert all(torch.equal(copies[name], p.bfloat16()) for name, p in ours.items())
    states = first.state(), second.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    (first.load(states[1]), second.load(states[0]))
    for optimizer, named in ((first, ours), (second, theirs)):
        optimizer.step(0.5, 3, gradients(3, named))
    assert all(torch.equal(p, theirs[name]) for name, p in ours.items())


@needs
def test_without_a_compiler_torch_moves_the_weights(monkeypatch):
    monkeypatch.setattr(build, "compiler_path", lambda: None)
    for cache in (native.missing, native._opened):
        cache.cache_clear()
    try:
        assert "no C++ compiler" in native.missing()
        assert [type(part) for part in made(low=True)[2]._parts] == [torch.optim.AdamW]
    finally:
        for cache in (native.missing, native._opened):
            cache.cache_clear()


@needs
def test_a_kernel_that_computes_something_else_is_not_trusted(monkeypatch):
    right = native.step
    monkeypatch.setattr(native, "step", lambda *args, **rules: right(*args, **{**rules, "lr": 2 * rules["lr"]}))
    assert "differs" in native._trial()
