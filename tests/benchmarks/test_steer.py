"""The steering benchmark: its rows from results made by hand, and a recipe that can be read."""

from __future__ import annotations

from types import ModuleType

import pytest

from cairn.data.pebble.skill import rows
from cairn.data.pebble.skills import ALL
from cairn.pipeline.bench import load_benchmark
from cairn.pipeline.recipe import load_recipe


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("steer")


def test_answers_that_obey_reach_the_bounds_and_others_do_not(bench: ModuleType) -> None:
    asked = list(rows(ALL["steering"], 1, "test", 60))
    assert all(one["ok"] for one in bench.rank_rows(asked))
    answers = [one["messages"][-1:] for one in asked]
    shifted = [{**one, "messages": answer} for one, answer in zip(asked, answers[1:] + answers[:1], strict=True)]
    assert not any(one["ok"] for one in bench.rank_rows(shifted))


def test_only_functions_have_a_bound(bench: ModuleType) -> None:
    table = [{"suite": f"pebble/{name}", "n": 9, "values": [{"value": 0.97}, {"value": after}]}
             for name, after in (("functions", 0.94), ("facts", 0.1))]  # fmt: skip
    one, two = bench.skill_rows(table)
    assert (one["ours"], one["ok"], two["ours"], two["ok"]) == (3.0, False, 87.0, True)
    assert one["measure"].startswith("functions: points lost by the tuning (97.0 before, 94.0 after")


def test_the_recipe_can_be_read(bench: ModuleType, tmp_path) -> None:
    (tmp_path / "r.yaml").write_text(bench.RECIPE.format(seed=1, prompts=20, chat=tmp_path, format="karakuri", tokens=9000))
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert list(recipe.stages["steered"].config.attributes.root) == ["verbosity", "complexity", "humor", "toxicity"]
