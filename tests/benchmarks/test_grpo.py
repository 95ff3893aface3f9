"""The benchmark of training by rewards: its rows from scores made by hand, its recipe, and the whole made small."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cairn.pipeline.bench import load_benchmark, make_options
from cairn.pipeline.recipe import load_recipe


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("grpo")


def scores(**values: float) -> dict[str, dict[str, float]]:
    return {name: {"value": value, "n": 100} for name, value in values.items()}


def test_the_bounds_are_about_the_gain_and_the_largest_fall(bench: ModuleType) -> None:
    rows = bench.score_rows(scores(arithmetic=0.5, json=0.9, facts=0.6), scores(arithmetic=0.74, json=0.87, facts=0.7))
    found = {one["measure"]: (one["ours"], one["must"], one["ok"]) for one in rows}
    assert found["arithmetic, points gained by rewards"] == (24.0, ">= 25", False)
    assert found["largest fall of another skill (json), points"] == (3.0, "<= 2", False)
    assert found["arithmetic after the short tuning, % right of 100"] == (50.0, "<= 60", True)
    assert found["facts, % right of 100: after, before (peer)"] == (70.0, "", True)


def test_the_recipe_is_one_that_the_pipeline_takes(bench: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "brief.yaml"
    path.write_text(yaml.safe_dump(bench.recipe(make_options("grpo", bench, {"tokens": 5000, "steps": 3})), sort_keys=False))
    recipe = load_recipe(str(path))
    assert list(recipe.stages) == ["corpus", "tokenizer", "base", "chat", "before", "grpo", "after", "alone", "practised"]
    assert recipe.stages["chat"].config.tokens == 5000
    assert recipe.stages["grpo"].config.steps == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_made_small(bench: ModuleType) -> None:
    budget = ["corpus.scale=0.02", "base.tokens=20000", "grpo.rollouts.prompts=8", "grpo.rollouts.answers=4", "grpo.metric=answers"]
    rows = bench.run(make_options("grpo", bench, {"tokens": 20000, "steps": 2, "budget": budget}))
    measures = {one["measure"]: one for one in rows}
    assert measures["stage grpo, time in s"]["ok"]
    assert measures["groups"]["ours"] == 16
    assert measures["answers"]["ours"] == 64
