"""The configuration and the objectives."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cairn.errors import UserError
from cairn.train.config import OptimizerConfig, Training
from cairn.train.objectives import load_objective, objective_names


@pytest.mark.parametrize("bad", [{"lr": 0}, {"lr": -1}, {"lr": float("nan")}, {"lr": float("inf")}, {"weight_decay": float("inf")}])
def test_rates_must_be_above_zero(bad):
    with pytest.raises(ValidationError):
        OptimizerConfig(**bad)


def test_a_budget_is_needed_and_only_one():
    with pytest.raises(ValidationError, match="either steps or tokens"):
        Training()
    with pytest.raises(ValidationError, match="either steps or tokens"):
        Training(steps=1, tokens=2)
    assert Training(tokens=100, sequence_length=10, batch_sequences=3).total_steps == 4


def test_z_loss_is_for_likelihoods():
    assert load_objective("language_model", Training(steps=1, z_loss=1e-4)).z_loss == 1e-4
    with pytest.raises(ValidationError, match="z_loss belongs to the objectives supervised and language_model"):
        Training(steps=1, objective="preference", z_loss=1e-4)


def test_objectives_are_found_by_their_files():
    assert objective_names() == ["attributes", "distillation", "grpo", "language_model", "preference", "reward", "supervised"]
    with pytest.raises(UserError, match="did you mean 'supervised'"):
        load_objective("supervized")


@pytest.mark.parametrize(("given", "meant"), [(True, "on"), (False, "off"), ("auto", "auto"), ("off", "off")])
def test_a_bare_on_or_off_is_what_yaml_makes_true_or_false_of(given, meant):
    assert Training.model_validate({"steps": 1, "compile": given}).compile == meant
