"""The stage `train` with a compute budget and with muP, through recipes and the command line."""

from __future__ import annotations

import json

import pytest

from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.recipe import load_recipe

RECIPE = """recipe: dial
seed: 1
stages:
  tokenizer: {{kind: tokenizer, vocab_size: 300, data: [{{name: texts, path: {texts}}}]}}
  base:
    kind: train
    objective: language_model
    tokenizer: tokenizer
    budget: {{flops: 1e13}}
    sequence_length: 64
    steps: 2
    data: [{{name: texts, path: {texts}}}]
  more:
    kind: train
    objective: language_model
    init: base
    sequence_length: 64
    batch_sequences: 2
    steps: 2
    data: [{{name: texts, path: {texts}}}]
"""


@pytest.fixture
def recipe(tmp_path):
    rows = [{"text": f"{i} and {i + 1} make {2 * i + 1}. " * 3} for i in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "dial.yaml"
    path.write_text(RECIPE.format(texts=tmp_path / "texts.jsonl"))
    return str(path)


def call(capsys, tmp_path, *words, status=0):
    got = main([*words, "--store", str(tmp_path / "store")])
    out, err = capsys.readouterr()
    assert got == status, err
    return out if status == 0 else err


def test_a_budget_becomes_sizes_that_plan_shows_and_the_record_holds(recipe, tmp_path, capsys):
    plan = json.loads(call(capsys, tmp_path, "plan", recipe, "--json", "--set", "base.steps=null"))["stages"][1]
    chosen = plan["chosen"]
    assert chosen["budget"] == 1e13
    assert plan["flops"] == pytest.approx(1e13, rel=0.1)
    shown = call(capsys, tmp_path, "plan", recipe)
    assert f"base chose: budget 1e+13, family qwen3, hidden_size {chosen['hidden_size']}, layers {chosen['layers']}" in shown
    assert "more chose" not in shown
    call(capsys, tmp_path, "run", recipe, "--json")
    store = Store(tmp_path / "store")
    base, more = (Artifact(store.artifacts / store.named()["dial"][name]) for name in ("base", "more"))
    config = base.record.config
    assert {key: config["model"][key] for key in ("hidden_size", "layers")} == {key: chosen[key] for key in ("hidden_size", "layers")}
    assert config["model"]["mup"]["base_width"] == chosen["rates_hold_at_width"] == 192
    assert config["budget"] == {"flops": 1e13, "tokens_per_parameter": 20.0, "vocab_size": 300}
    assert config["steps"] == 2, "what the recipe gives stays"
    kept = json.loads((more.path("model") / "config.json").read_text())["mup"]
    assert kept["width"] == chosen["hidden_size"]
    assert kept["base_width"] == 192
    for name in ("base", "more"):
        assert json.loads(call(capsys, tmp_path, "verify", f"dial/{name}", "--replay", "--json"))["ok"]


def test_any_chosen_value_may_be_given(recipe):
    def base(*overrides):
        return load_recipe(recipe, overrides).stages["base"].config

    assert base("base.model.layers=5").model.layers == 5
    assert base("base.optimizer.lr=0.5").optimizer.lr == 0.5
    assert base("base.optimizer.lr=0.5").optimizer.embedding_lr == 0.1
    assert base("base.steps=null", "base.tokens=99").tokens == 99
    assert base("base.steps=null", "base.budget.flops=4e13").tokens > 1.5 * base("base.steps=null").tokens
    assert base("base.model.hidden_size=250").model.heads == 5, "what is not given follows from what is"
    assert base("base.model.layers=3", "base.sequence_length=2048").model.context == 2048
    assert base("base.model.embedding_range=0.5").model.tied is False
    assert base("base.budget.vocab_size=400").budget.vocab_size == 400


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("base.budget.flops=1e5", ["too small: the smallest model takes", "--set base.budget.flops=1e5"]),
        ("base.budget={seconds: 300}", ["another model on every machine", "cairn doctor"]),
        ("base.budget.flop=3", ["did you mean 'flops'"]),
        ("base.init=tokenizer", ["shape of a fresh model"]),
        ("base.tokens=7", ["either steps or tokens"]),
        ("base.model={hidden_size: 250, heads: 3}", ["must be a multiple of heads"]),
        ("base.model.kv_heads=5", ["must be a multiple of kv_heads (5)", "stages.base.model"]),
    ],
)
def test_bad_budgets_are_told_on_one_screen(recipe, tmp_path, capsys, override, said):
    err = call(capsys, tmp_path, "plan", recipe, "--set", override, status=2)
    assert all(part in err for part in said), err


def test_without_a_budget_a_size_that_is_left_out_has_its_default(recipe, tmp_path, capsys):
    words = ["--set", "base.budget=null", "--set", "base.model={hidden_size: 250}"]
    assert "must be a multiple of heads (6)" in call(capsys, tmp_path, "plan", recipe, *words, status=2)


def test_muP_needs_a_place_for_its_multipliers(recipe, tmp_path, capsys):
    model = "{family: gpt_neox, hidden_size: 32, heads: 2, mup: {base_width: 16, base_head_size: 4}}"
    err = call(capsys, tmp_path, "run", recipe, "--set", "base.budget=null", "--set", f"base.model={model}", status=2)
    assert "no place for the scores' multiplier" in err
