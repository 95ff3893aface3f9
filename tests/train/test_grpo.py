"""Training by rewards: advantages, the loss against its formula token by token, and what counts in it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cairn.config import build
from cairn.data.batches import join, make_batch
from cairn.data.encode import Encoded
from cairn.errors import UserError
from cairn.ledger.progress import Silent
from cairn.model.config import ModelConfig
from cairn.model.determinism import deterministic
from cairn.model.load import new_model
from cairn.model.packing import try_packing
from cairn.train.forward import TorchBatch
from cairn.train.objectives.grpo import Objective
from cairn.train.policy import RULES, PolicyConfig, RolloutConfig, advantages
from cairn.train.preference import WINDOW, Adviser
from cairn.train.rollouts import Answer, Asking, Group, Prompt, Rollouts

REWARDS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=9)


@given(REWARDS)
def test_advantages_are_their_formulas(rewards):
    plain = advantages(rewards, PolicyConfig(scale="none"))
    assert plain == pytest.approx([r - sum(rewards) / len(rewards) for r in rewards])
    beyond = [r - (sum(rewards) - r) / (len(rewards) - 1) for r in rewards]
    assert advantages(rewards, PolicyConfig(baseline="leave_one_out")) == pytest.approx(beyond)
    scaled = advantages(rewards, PolicyConfig())
    if len(set(rewards)) == 1:
        assert scaled == [0.0] * len(rewards)
    else:
        assert scaled == pytest.approx([p / np.std(rewards) for p in plain])
        assert np.std(scaled) == pytest.approx(1.0)


def test_rewards_that_differ_by_rounding_are_the_same():
    assert advantages([0.1 + 0.2, 0.3, 0.3], PolicyConfig()) == [0.0, 0.0, 0.0]


def test_updates_must_share_the_prompts():
    with pytest.raises(UserError, match="shared out"):
        build(RolloutConfig, {"prompts": 10, "updates": 4}, where="rollouts")


def test_a_temperature_behind_a_cap_is_refused_before_anything_is_asked(tmp_path):
    shape = ModelConfig(family="gemma2", hidden_size=32, layers=1, heads=4, kv_heads=2, intermediate_size=64, context=64)
    model = new_model(shape, vocab_size=50, bos_id=None, eos_id=0, pad_id=None, seed=1)
    asking = Asking(
        prompts=[[Prompt(0, 1, "a", [1, 2], None)]], weights=[1.0], names=["a"], seed=1, rollouts=RolloutConfig(temperature=0.7),
        policy=PolicyConfig(), score=lambda prompt, ids, reason: (0.0, ""), stop_ids=frozenset({0}), vocab_size=50, folder=tmp_path,
        progress=Silent(),
    )  # fmt: skip
    with pytest.raises(UserError, match="caps its logits"):
        Rollouts(asking).bind(SimpleNamespace(sharding=SimpleNamespace(even=False), objective=Objective(), model=model))


# -- the loss ---------------------------------------------------------------------------------------------------------


def tiny(seed=1):
    shape = ModelConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64, context=64, initializer_range=0.2)
    return new_model(shape, vocab_size=50, bos_id=None, eos_id=0, pad_id=None, seed=seed)


def make_groups(seed=0):
    """Groups of answers with rewards; in the second all are the same."""
    draw = np.random.default_rng(seed)
    groups = {}
    for number in range(4):
        prompt = Prompt(0, number + 1, str(number), [int(x) for x in draw.integers(1, 50, 3 + number)], None)
        found = [([int(x) for x in draw.integers(1, 50, int(draw.integers(1, 7)))], float(draw.integers(0, 3))) for _ in range(3)]
        answers = [Answer(ids, "stop", 1.0 if number == 1 else reward, "") for ids, reward in found]
        told = advantages([a.reward for a in answers], PolicyConfig())
        groups[number] = Group(number, prompt, answers, told)
    return groups


def batch_of(groups):
    return make_batch([g.encoded() for g in groups.values()], [0] * len(groups), list(groups))


def objective(groups, temperature=1.0, **policy):
    made = Objective()
    made.config, made.temperature, made.groups = PolicyConfig(**policy), temperature, groups
    return made


def by_hand(model, groups, temperature, low, high, kl):
    """The sum over all tokens, each answer computed behind a prompt of its own."""
    total = 0.0
    for group in groups.values():
        at = 0
        for answer, advantage in zip(group.answers, group.advantages, strict=True):
            ids = torch.tensor([group.prompt.ids + answer.ids])
            logits = model(input_ids=ids).logits[0] / temperature
            start = len(group.prompt.ids)
            for k, token in enumerate(answer.ids):
                logp = logits[start + k - 1].log_softmax(-1)[token]
                old = group.logp[at] if group.logp is not None else logp.detach()
                ratio = torch.exp(logp - old)
                total = total - torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
                if kl:
                    d = group.reference[at] - logp
                    total = total + kl * (torch.exp(d) - d - 1)
                at += 1
    return total


CASES = {
    "on policy": {}, "temperature": {"temperature": 0.7}, "several updates": {"old": True},
    "clip higher": {"old": True, "clip_low": 0.05, "clip_high": 0.3}, "kl": {"kl": 0.3},
    "all": {"old": True, "kl": 0.1, "temperature": 1.5},
}  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_formula(case, packed):
    told = dict(CASES[case])
    temperature, old = told.pop("temperature", 1.0), told.pop("old", False)
    deterministic(1)
    model, groups = tiny(), make_groups()
    draw = np.random.default_rng(3)
    for group in groups.values():
        count = sum(len(a.ids) for a in group.answers)
        with torch.no_grad():
            here = []
            for answer in group.answers:
                ids = torch.tensor([group.prompt.ids + answer.ids])
                logp = (model(input_ids=ids).logits[0] / temperature).log_softmax(-1)
                here += [float(logp[len(group.prompt.ids) + k - 1, t]) for k, t in enumerate(answer.ids)]
        if old:
            group.logp = [x + float(d) for x, d in zip(here, draw.normal(0, 0.3, count), strict=True)]
        if told.get("kl"):
            group.reference = [x + float(d) for x, d in zip(here, draw.normal(0, 0.3, count), strict=True)]
    wanted = by_hand(model, groups, temperature, told.get("clip_low", 0.2), told.get("clip_high", 0.2), told.get("kl", 0.0))
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    if packed:
        assert try_packing(model, longest=64).packs
    loss = objective(groups, temperature, **told).loss(model, TorchBatch.of(batch_of(groups), "cpu", packed=packed, multiple=16))
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4, abs=1e-4)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, gradients[name], rtol=1e-3, atol=1e-4), name
    if old:
        assert loss.metrics["clipped_low"] + loss.metrics["clipped_high"] > 0


def test_every_token_of_the_step_counts_alike_however_it_is_cut():
    deterministic(1)
    model, groups = tiny(), make_groups()
    assert try_packing(model, longest=64).packs
    made = objective(groups)
    tokens = sum(len(a.ids) for g in groups.values() for a in g.answers)
    whole = batch_of(groups)
    assert made.count(whole) == tokens == whole.predicted
    together = made.loss(model, TorchBatch.of(whole, "cpu", packed=True))
    parts = [made.loss(model, TorchBatch.of(part, "cpu", packed=True)) for part in whole.split(16)]
    assert len(parts) > 1
    assert sum(float(p.total.detach()) for p in parts) == pytest.approx(float(together.total.detach()), rel=1e-4)
    # A group that compares nothing may be left out of the passes: the sum and what it is divided by stay.
    rest = {number: group for number, group in groups.items() if not group.alike}
    assert 0 < len(rest) < 4
    left = batch_of(rest)
    assert float(made.loss(model, TorchBatch.of(left, "cpu", packed=True)).total.detach()) == pytest.approx(
        float(together.total.detach()), rel=1e-4
    )
    assert made.count(left) == tokens


def rows_to_practise(seed=5):
    draw = np.random.default_rng(seed)
    ids = [draw.integers(1, 50, n).astype(np.int32) for n in (6, 9, 4)]
    return [Encoded(own, np.array([0] * 2 + [1] * (len(own) - 2), np.uint8)) for own in ids]


@pytest.mark.parametrize("packed", [True, False])
def test_practice_adds_its_mean_loss_however_the_step_is_cut(packed):
    """Its targets are judged at temperature 1, whatever the answers were drawn at."""
    deterministic(1)
    model, groups, documents = tiny(), make_groups(), rows_to_practise()
    made = objective(groups, temperature=0.7)
    answers = batch_of(groups)
    practice = make_batch(documents, [1, 1, 2])
    made.practice, made.practised = 0.4, practice.predicted
    terms = made.count(answers)
    mean = 0.0
    for document in documents:
        ids = torch.from_numpy(document.ids.astype(np.int64))
        mean = mean - model(input_ids=ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[1:].sum() / practice.predicted
    wanted = by_hand(model, groups, 0.7, 0.2, 0.2, 0.0) / terms + 0.4 * mean
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    if packed:
        assert try_packing(model, longest=64).packs
    whole = join(answers, practice)
    assert made.count(whole) == terms
    parts = whole.split(16)
    # One of answers alone, one of practice alone.
    assert {tuple(sorted({bool(a) for a in part.answers})) for part in parts} >= {(True,), (False,)}
    losses = [made.loss(model, TorchBatch.of(part, "cpu", packed=packed, multiple=16)) for part in parts]
    total = sum(loss.total for loss in losses) / terms
    total.backward()
    assert float(total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, gradients[name], rtol=1e-3, atol=1e-5), name
    sums: dict[str, float] = {}
    for loss in losses:
        for name, value in loss.metrics.items():
            sums[name] = sums.get(name, 0.0) + value
    assert made.figures(sums)["practice"] == pytest.approx(float(mean.detach()), rel=1e-4)
    assert sums["tokens"] == terms


def test_figures_are_means():
    model, groups = tiny(), make_groups()
    made = objective(groups)
    found = made.figures(made.loss(model, TorchBatch.of(batch_of(groups), "cpu", packed=False)).metrics)
    rewards = [a.reward for g in groups.values() for a in g.answers]
    assert found["reward"] == pytest.approx(np.mean(rewards))
    assert found["without_variance"] == 0.5 == np.mean([len({a.reward for a in g.answers}) == 1 for g in groups.values()])
    assert 0 < found["entropy"] < 3 * math.log(50)
    assert "tokens" not in found


CALM = {"without_variance": 0.1, "reward": 0.5, "unfinished": 0.0, "entropy": 0.4, "clipped_low": 0.0, "clipped_high": 0.0, "kl": 0.01}


@pytest.mark.parametrize(
    ("what", "figures"),
    [("groups without variance", {"without_variance": 0.9}), ("answers are cut", {"unfinished": 0.5}),
     ("answers hardly vary", {"entropy": 0.001}), ("tokens are clipped", {"clipped_low": 0.4}), ("far from the reference", {"kl": 2.0})],
)  # fmt: skip
def test_what_goes_wrong_is_said_once(what, figures):
    calm, adviser = Adviser(RULES), Adviser(RULES)
    for _ in range(2 * WINDOW):
        calm.see(CALM)
        adviser.see(CALM | figures)
    assert calm.told == []
    assert [one["what"] for one in adviser.told] == [what]
