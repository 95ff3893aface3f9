"""The benchmark of training by rewards: its rows from scores made by hand, its recipe, and the whole made small."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cairn.data.pebble import ALL, Sizes
from cairn.data.pebble.skill import rows
from cairn.pipeline.bench import load_benchmark, make_options
from cairn.pipeline.recipe import load_recipe


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("grpo")


def scores(**values: float) -> dict[str, dict[str, float]]:
    return {name: {"value": value, "n": 100} for name, value in values.items()}


def test_the_bounds_are_about_the_gain_and_the_largest_fall(bench: ModuleType) -> None:
    told = bench.score_rows(scores(arithmetic=0.5, json=0.9, facts=0.6), scores(arithmetic=0.74, json=0.87, facts=0.7))
    found = {one["measure"]: (one["ours"], one["must"], one["ok"]) for one in told}
    assert found["arithmetic, points gained by rewards"] == (24.0, ">= 25", False)
    assert found["largest fall of another skill (json), points"] == (3.0, "<= 2", False)
    assert found["arithmetic after the short tuning, % right of 100"] == (50.0, "<= 60", True)
    assert found["facts, % right of 100: after, before (peer)"] == (70.0, "", True)


def test_the_error_of_a_difference_is_over_the_same_questions(bench: ModuleType) -> None:
    """Of four questions one became wrong; how many are right matters to nobody."""
    before = {"json": {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}, "arithmetic": {"x": 0.0, "y": 1.0}}
    after = {"json": {"d": 1.0, "c": 0.0, "b": 1.0, "a": 0.0}, "arithmetic": {"x": 1.0, "y": 1.0}}
    [one] = bench.error_rows(before, after)
    assert one["measure"] == "json, standard error of the difference, points"
    assert one["ours"] == 25.0


def test_a_fall_within_the_bound_is_more_than_a_question_or_two(bench: ModuleType) -> None:
    """Where the corpus can ask more than pebble's own test does, it is asked so much that two points are a score of questions."""
    written = bench.recipe(make_options("grpo", bench, {}))["stages"]["corpus"]
    asked = Sizes(test=written["test"])
    for name in bench.PRACTICE:
        made = len(list(rows(ALL[name], 1, "test", asked.of(name, "test"))))
        more = len(list(rows(ALL[name], 1, "test", 2000)))
        assert made == more or made >= 1000, name


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
    told = bench.run(make_options("grpo", bench, {"tokens": 20000, "steps": 2, "budget": budget}))
    measures = {one["measure"]: one for one in told}
    assert measures["stage grpo, time in s"]["ok"]
    assert measures["groups"]["ours"] == 16
    assert measures["answers"]["ours"] == 64
