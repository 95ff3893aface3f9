"""The corpus stage: what it writes, twice the same, and that a leak stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cairn.config import build
from cairn.data.check import check_file
from cairn.data.pebble import Corpus
from cairn.errors import UserError
from cairn.ledger.digest import folder_digest
from cairn.ledger.store import Store
from cairn.pipeline.stage import Context, find_stage


def run(tmp_path: Path, name: str, seed: int = 0, **config) -> tuple[Path, dict]:
    stage = find_stage("corpus")
    draft = tmp_path / name
    draft.mkdir(exist_ok=True)
    made = build(stage.config, {"scale": 0.02, **config}, where="recipe")
    context = Context(config=made, seed=seed, inputs={}, draft=draft, store=Store(tmp_path))
    return draft, stage.run(context)


def test_files_agree_with_the_metrics_and_can_be_read(tmp_path):
    draft, metrics = run(tmp_path, "a")
    assert set(metrics["test_rows"]) >= {"functions", "arithmetic", "facts", "refusal"}
    for part in ("train", "test"):
        for skill, n in metrics[f"{part}_rows"].items():
            checked = check_file(draft / part / f"{skill}.jsonl", "messages")
            assert checked["ok"]
            assert checked["rows"] == n
    assert len((draft / "pretrain.jsonl").read_text().splitlines()) == metrics["pretrain_rows"]
    summary = json.loads((draft / "summary.json").read_text())
    assert summary["disjoint"] == metrics["disjoint"]
    assert summary["disjoint"]["shared"] == 0
    assert set(summary["languages"]) == {"en", "ko", "ja"}
    assert summary["generator"] == "pebble"


def test_same_seed_same_bytes_even_over_a_half_written_draft(tmp_path):
    first, metrics = run(tmp_path, "a")
    (tmp_path / "b" / "train").mkdir(parents=True)
    (tmp_path / "b" / "train" / "facts.jsonl").write_text('{"messages": [')
    second, again = run(tmp_path, "b")
    assert metrics == again
    assert folder_digest(first) == folder_digest(second)
    other, _ = run(tmp_path, "c", seed=1)
    assert folder_digest(first) != folder_digest(other)


def test_a_leak_stops_the_stage_and_nothing_is_written(tmp_path, monkeypatch):
    import cairn.pipeline.stages.corpus as module

    real = module.generate

    def leaky(seed, sizes):
        made = real(seed, sizes)
        return Corpus(made.pretrain, {**made.train, "facts": made.train["facts"] + made.test["facts"][:1]}, made.test)

    monkeypatch.setattr(module, "generate", leaky)
    with pytest.raises(UserError, match="in the test and in training"):
        run(tmp_path, "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_misspelt_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="pretrain"):
        run(tmp_path, "a", pretrian={"facts": 3})


def test_the_estimate_grows_with_the_scale():
    stage = find_stage("corpus")
    one, tenth = (stage.estimate(stage.config(scale=s), {}) for s in (1.0, 0.1))
    assert one.disk_bytes > 5 * tenth.disk_bytes
