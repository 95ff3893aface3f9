"""The preference benchmark: its rows from results made by hand, its pairs, and the whole where TRL is not installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cairn.pipeline.bench import bench_folder, load_benchmark, make_options


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_benchmark("align")


def test_the_bounds_are_about_the_fastest_configuration(bench: ModuleType) -> None:
    slow, fast = bench.Duel([9, 10, 30], [1, 1, 1], 900.0), bench.Duel([9, 9, 9], [2, 2, 1], 1000.0)
    duels = {"TRL default": slow, "TRL reference precomputed": fast}
    rows = {one["measure"]: one for one in bench.speed_rows("S", duels, 500.0)}
    speed = rows["S: pairs/s against TRL's fastest configuration (TRL reference precomputed)"]
    assert (speed["ratio"], speed["must"], speed["ok"]) == (4.5, ">= 6", False)
    memory = rows["S: peak MB against TRL's fastest configuration (TRL reference precomputed)"]
    assert (memory["ratio"], memory["ok"]) == (0.5, True)
    assert rows["S: pairs/s, TRL default"]["ratio"] == 10


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [(f"Say something about {i}.", f"There is much to say of {i}. " * (1 + i % 5)) for i in range(60)]
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in texts]
    path = tmp_path_factory.mktemp("rows") / "alpaca.json"
    path.write_text(json.dumps(rows))
    return path


def test_a_rejected_answer_is_another_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(bench_folder() / "train_peers"))
    spec: Any = importlib.util.spec_from_file_location("pairs_prepare", bench_folder() / "train_peers" / "pairs_prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(20)]
    found = module.pairs_of([{"messages": messages, "id": str(i)} for i, messages in enumerate(said)], 10, 1)
    assert len(found) == 10
    for pair in found:
        assert pair["chosen"][0]["content"] == pair["messages"][-1]["content"].replace("q", "a")
        assert pair["rejected"] != pair["chosen"]
    sys.modules.pop("worker", None)
    sys.modules.pop("prepare", None)


@pytest.mark.slow
def test_where_trl_is_missing_its_rows_are_skipped_and_ours_run(bench: ModuleType, alpaca: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("trl") is not None:
        pytest.skip("TRL is installed here")
    given = {"data": alpaca, "shapes": ["tiny"], "rounds": 1, "seconds": 0.1, "compile": False, "pairs": 40, "store": tmp_path / "out"}
    rows = bench.run(make_options("align", bench, given))
    assert len(rows) == 5
    assert all(one["ok"] is None and "not measured" in one["measure"] for one in rows)
