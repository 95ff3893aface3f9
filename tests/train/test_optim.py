"""Which weight moves by which rule and rate; states of every kind, saved, loaded and weighed."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from cairn.errors import UserError
from cairn.model.mup import Scale
from cairn.train.config import GroupConfig, OptimizerConfig
from cairn.train.optim import Optimizer, check_groups

NAMES = [f"model.layers.{i}.{part}.weight" for i in range(12) for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")]


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
        ours.step(0.5, step, {"w": w.grad, "n": n.grad})
        theirs.step()
    torch.testing.assert_close(w, v)
    torch.testing.assert_close(n, m)


def test_the_embedding_may_have_a_rate_of_its_own():
    named = {name: torch.ones(4, 4, requires_grad=True) for name in ("matrix", "inputs", "head")}
    config = OptimizerConfig(lr=0.5, adam_lr=0.1, embedding_lr=0.3, betas=(0.0, 0.0))
    optimizer = Optimizer(config, named, "inputs", "head")
    optimizer.step(0.5, 0, {name: torch.ones_like(p) for name, p in named.items()})
    moved = {name: float((1 - p.detach()).mean()) for name, p in named.items()}
    assert moved["inputs"] == pytest.approx(0.15, rel=1e-3)  # AdamW's first step is the rate itself
    assert moved["head"] == pytest.approx(0.05, rel=1e-3)
    tied = Optimizer(config, {"inputs": torch.ones(4, 4, requires_grad=True)}, "inputs", "inputs")
    assert [group["peak"] for part in tied._parts for group in part.param_groups] == [0.1]



def test_scaled_rates_keep_rate_times_decay():
    """Each weight moves by its factor of the rate; what decays away in a step is the same share for all."""
    for kind in ("adamw", "muon"):
        named = {name: torch.ones(4, 4, requires_grad=True) for name in ("one", "quarter")}
        config = OptimizerConfig(kind=kind, lr=0.1, weight_decay=0.5)
        optimizer = Optimizer(config, named, None, None, scales={"quarter": Scale(adam=0.25, muon=0.5)})
        optimizer.step(1.0, 0, {name: torch.eye(4) for name in named})
        still = [float(p.detach()[0, 1]) for p in named.values()]
        moved = [float(p.detach()[0, 1] - p.detach()[0, 0]) for p in named.values()]
        assert still == pytest.approx([0.95, 0.95], abs=5e-3), kind
        assert moved[1] / moved[0] == pytest.approx(0.25 if kind == "adamw" else 0.5, rel=0.05), kind


def rates(optimizer):
    """{name: (peak, decay)}."""
    groups = [group for part in optimizer._parts for group in part.param_groups]
    return {optimizer._names[id(p)]: (g["peak"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_groups_go_by_name_and_the_first_that_matches_counts():
    named = {n: torch.ones(*([4] if "norm" in n else [4, 4]), requires_grad=True) for n in ("embed", "a.up", "b.up", "b.norm", "head")}
    groups = [{"match": "a.*", "lr": 0.7}, {"match": "*.up", "weight_decay": 0.2}, {"match": "*norm", "weight_decay": 0.3}]
    config = OptimizerConfig(lr=0.5, adam_lr=0.1, embedding_lr=0.3, weight_decay=0.01, groups=[*groups, {"match": "embed", "lr": 0.9}])
    assert rates(Optimizer(config, named, "embed", "head")) == {
        "embed": (0.9, 0.01), "a.up": (0.7, 0.01), "b.up": (0.5, 0.2), "b.norm": (0.1, 0.3), "head": (0.1, 0.01),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("*.q_porj.weight", "did you mean '*.q_proj.weight'"),
        ("model.layers.*.mlp.up.weight", "did you mean 'model.layers.*.mlp.up_proj.weight'"),
        ("nothing like it", "known: model.layers.*.input_layernorm.weight, model.layers.*.mlp.up_proj.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, says):
    with pytest.raises(UserError) as caught:
        check_groups([GroupConfig(match="*norm*", lr=1), GroupConfig(match=pattern, lr=1)], NAMES)
    assert f"no weight's name fits '{pattern}'" in str(caught.value)
    assert "optimizer.groups.1.match" in str(caught.value)
    assert says in str(caught.value)


def test_a_pattern_behind_a_wider_one_is_refused():
    with pytest.raises(UserError, match="goes by an earlier group"):
        check_groups([GroupConfig(match="*", lr=1), GroupConfig(match="*norm*", lr=1)], NAMES)


def test_a_group_says_something():
    with pytest.raises(ValidationError, match="needs lr or weight_decay"):
        GroupConfig(match="*")


def make(kind="muon", state="float32", dtype=torch.float32, seed=0):
    """Weights of every sort, and their optimiser."""
    shapes = {"e": (5, 130), "a": (4, 130), "b": (4, 130), "n": (3,)}
    named = {name: torch.ones(*shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}
    return named, Optimizer(OptimizerConfig(kind=kind, state=state, weight_decay=0.1), named, "e", "e", seed)


def push(named, optimizer, number, without=()):
    """One step with gradients that are a function of its number."""
    draws = [torch.Generator().manual_seed(number * 10 + i) for i in range(len(named))]
    drawn = {name: torch.randn(p.shape, generator=draw).to(p.dtype) for (name, p), draw in zip(named.items(), draws, strict=True)}
    optimizer.step(1.0, number, {name: g for name, g in drawn.items() if name not in without})


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("state", ["float32", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_survives_a_round_trip_of_bytes(tmp_path, kind, state, dtype):
    """Also of weights that got their first gradient late, or none yet."""
    from safetensors.torch import load_file, save_file

    one, first = make(kind, state, dtype)
    for number in range(3):
        push(one, first, number, without=("b", "n") if number < 2 else ("b",))
    save_file(first.state(), tmp_path / "state")
    two, second = make(kind, state, dtype)
    push(two, second, 0)  # what was there before is forgotten
    second.load(load_file(tmp_path / "state"))
    for name in one:
        two[name].data.copy_(one[name].data)
    assert not any(path.startswith("b/") for path in second.state())
    for number in (3, 4):
        push(one, first, number)
        push(two, second, number)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert all(torch.equal(value, second.state()[path]) for path, value in first.state().items())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("state", ["float32", "int8"])
def test_planned_bytes_are_those_of_the_state(kind, state):
    named, optimizer = make(kind, state)
    push(named, optimizer, 0)
    assert sum(value.nbytes for value in optimizer.state().values()) == optimizer.planned_bytes()
    if state == "int8":
        assert optimizer.planned_bytes() < 0.3 * optimizer.planned_bytes(coded=False)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_roundings_depend_on_seed_and_step(kind):
    def moved(seed, number):
        named, optimizer = make(kind, dtype=torch.bfloat16, seed=seed)
        optimizer.step(0.05, number, {name: torch.ones_like(p) for name, p in named.items()})
        return named["a"].detach()

    assert torch.equal(moved(1, 1), moved(1, 1))
    assert not torch.equal(moved(1, 1), moved(1, 2))
    assert not torch.equal(moved(1, 1), moved(2, 1))
