"""Schedules, optimisers and the configuration."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cairn.errors import UserError
from cairn.train.config import OptimizerConfig, ScheduleConfig, Training
from cairn.train.masters import Masters, clip_gradients
from cairn.train.muon import orthogonalise
from cairn.train.objectives import load_objective, objective_names
from cairn.train.optim import Optimizer
from cairn.train.schedule import factor

KINDS = st.sampled_from(["wsd", "cosine", "linear", "constant"])


@given(kind=KINDS, total=st.integers(1, 400), warmup=st.floats(0, 0.5), final=st.floats(0, 1))
def test_factors_stay_between_zero_and_one_and_the_first_step_moves(kind, total, warmup, final):
    config = ScheduleConfig(kind=kind, warmup=warmup, final=final)
    values = [factor(config, step, total) for step in range(total)]
    assert all(0 <= v <= 1 for v in values)
    assert values[0] > 0
    after = values[round(warmup * total) :]
    assert after == sorted(after, reverse=True)


def test_shapes_of_the_schedules():
    wsd = ScheduleConfig(kind="wsd", warmup=0.1, decay=0.5, final=0.0)
    assert factor(wsd, 0, 100) == pytest.approx(1 / 11)
    assert factor(wsd, 30, 100) == 1.0
    assert factor(wsd, 75, 100) == pytest.approx(0.5)
    cosine = ScheduleConfig(kind="cosine", warmup=0.0, final=0.1)
    assert factor(cosine, 50, 100) == pytest.approx(0.55)


@given(st.integers(2, 20), st.integers(2, 20))
def test_orthogonalised_matrices_have_singular_values_near_one(rows, columns):
    x = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(rows * 100 + columns)) + torch.eye(rows, columns)
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.max() < 1.35
    assert values[:, 0].min() > 0.5


def test_adamw_is_torch_adamw_and_norms_do_not_decay():
    w, n = torch.ones(3, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    config = OptimizerConfig(kind="adamw", lr=0.1, weight_decay=0.5)
    ours = Optimizer(config, {"w": w, "n": n}, None, None)
    v, m = w.detach().clone().requires_grad_(), n.detach().clone().requires_grad_()
    theirs = torch.optim.AdamW([{"params": [v], "weight_decay": 0.5}, {"params": [m], "weight_decay": 0.0}], lr=0.05, betas=(0.9, 0.95))
    for step in range(3):
        for a, b in ((w, v), (n, m)):
            a.grad = torch.full_like(a, 0.1 * (step + 1))
            b.grad = a.grad.clone()
        ours.step(0.5, step)
        theirs.step()
    torch.testing.assert_close(w, v)
    torch.testing.assert_close(n, m)


def test_the_embedding_may_have_a_rate_of_its_own():
    named = {name: torch.ones(4, 4, requires_grad=True) for name in ("matrix", "inputs", "head")}
    config = OptimizerConfig(lr=0.5, adam_lr=0.1, embedding_lr=0.3, betas=(0.0, 0.0))
    optimizer = Optimizer(config, named, "inputs", "head")
    for p in named.values():
        p.grad = torch.ones_like(p)
    optimizer.step(0.5, 0)
    moved = {name: float((1 - p.detach()).mean()) for name, p in named.items()}
    assert moved["inputs"] == pytest.approx(0.15, rel=1e-3)  # AdamW's first step is the rate itself
    assert moved["head"] == pytest.approx(0.05, rel=1e-3)
    tied = Optimizer(config, {"inputs": torch.ones(4, 4, requires_grad=True)}, "inputs", "inputs")
    assert [group["peak"] for part in tied._parts for group in part.param_groups] == [0.1]


def test_optimizer_state_survives_a_round_trip():
    def fresh():
        named = {name: torch.ones(*shape, requires_grad=True) for name, shape in {"a": (4, 4), "e": (5, 2), "n": (3,)}.items()}
        return named, Optimizer(OptimizerConfig(), named, "e", "e")

    def push(named, value):
        for p in named.values():
            p.grad = torch.full_like(p, value)

    one, first = fresh()
    push(one, 0.3)
    first.step(1.0, 0)
    two, second = fresh()
    for name in one:
        two[name].data.copy_(one[name].data)
    second.load(first.state())
    for named, optimizer in ((one, first), (two, second)):
        push(named, -0.2)
        optimizer.step(1.0, 1)
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_clipping():
    named = {"a": torch.zeros(2, requires_grad=True), "b": torch.zeros(1, requires_grad=True)}
    named["a"].grad, named["b"].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(named, 0.0) == pytest.approx(5.0)
    assert named["b"].grad.item() == 4.0
    clip_gradients(named, 1.0)
    assert clip_gradients(named, 0.0) == pytest.approx(1.0, rel=1e-4)


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


@pytest.mark.parametrize("bad", [{"lr": 0}, {"lr": -1}, {"lr": float("nan")}])
def test_rates_must_be_above_zero(bad):
    with pytest.raises(ValidationError):
        OptimizerConfig(**bad)


def test_a_budget_is_needed_and_only_one():
    with pytest.raises(ValidationError, match="either steps or tokens"):
        Training()
    with pytest.raises(ValidationError, match="either steps or tokens"):
        Training(steps=1, tokens=2)
    assert Training(tokens=100, sequence_length=10, batch_sequences=3).total_steps == 4


def test_objectives_are_found_by_their_files():
    assert objective_names() == ["language_model", "supervised"]
    with pytest.raises(UserError, match="did you mean 'supervised'"):
        load_objective("supervized")
