"""Several processes, one training: through the command line, with real processes and gloo."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.resolve import resolve_artifact
from cairn.train.loop import Trainer, read_metrics

TOKENIZER = "  tok: {kind: tokenizer, vocab_size: 300, format: k2, data: [{name: a, path: rows.jsonl}]}\n"
STAGE = """\
  {name}:
    kind: train
    tokenizer: tok
    model: {{hidden_size: 32, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 64, context: 128, tied: {tied}}}
    data: [{{name: a, path: rows.jsonl}}]
    steps: {steps}
    sequence_length: 128
    batch_sequences: {batch}
    accumulate: {accumulate}
    memory: {{sharding: {sharding}}}
    optimizer: {{kind: {optimizer}, lr: {rate}}}
    checkpoints: {{every: {every}, resume_seconds: {resume}}}
"""
DEFAULTS: dict[str, Any] = {
    "tied": "true", "steps": 5, "batch": 1, "accumulate": 8, "sharding": "replicate", "optimizer": "muon",
    "rate": 0.01, "every": 4, "resume": 20,
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipe({stage: settings}) writes a recipe and its rows, and makes their folder the current one."""
    draw = random.Random(0)
    rows = []
    for _ in range(120):
        said = [" ".join(str(draw.randint(0, 99)) for _ in range(draw.randint(1, 14))) for _ in range(2)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    def write(stages: dict[str, dict[str, Any]]) -> str:
        text = "".join(STAGE.format(name=name, **DEFAULTS | settings) for name, settings in stages.items())
        (tmp_path / "r.yaml").write_text(f"recipe: small\nseed: 1\nstages:\n{TOKENIZER}{text}")
        return "r.yaml"

    return write


def start(*words: str, launcher: tuple[str, ...] = ("-m", "cairn")) -> subprocess.Popen[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, *words], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    _, err = process.communicate(timeout=200)
    assert process.returncode == status, err
    return err


def artifact(store: str, stage: str) -> Artifact:
    return resolve_artifact(f"small/{stage}", Store(Path(store)))


def losses(store: str, stage: str) -> list[float]:
    return [line["loss"] for line in read_metrics(artifact(store, stage).path("metrics.jsonl"))]


def test_ranks_passes_and_shards_change_nothing_but_rounding(recipe: Any) -> None:
    """One process as the measure; two ranks under torchrun for each way of dividing, four by --ranks."""
    path = recipe({
        "base": {},
        "wide": {"batch": 4, "accumulate": 2},
        # Other rates, since how memory is used is no part of a key: the stages would be one.
        "shards": {"sharding": "full", "rate": 0.011},
        "untied": {"sharding": "full", "tied": "false", "optimizer": "adamw"},
    })  # fmt: skip
    assert main(["run", path, "--store", "one"]) == 0
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cairn")
    assert "rank" not in finish(start("run", path, "--store", "two", launcher=launcher))
    for stage in ("base", "wide", "shards", "untied"):
        np.testing.assert_allclose(losses("two", stage), losses("one", stage), rtol=2e-4, err_msg=stage)
    wider = ("--set", "base.batch_sequences=2", "--set", "base.accumulate=4")
    # A recipe of another folder: its command, as a card shows it, names no folder.
    deep = shutil.copy(path, Path(tempfile.mkdtemp(dir=".")) / "small.yaml")
    finish(start("run", str(deep), "--store", "four", "--until", "base", "--ranks", "4", *wider))
    np.testing.assert_allclose(losses("four", "base"), losses("one", "base"), rtol=2e-4)
    record = artifact("four", "base").record
    assert record.environment["world_size"] == 4
    # Checkpoints look alike whoever wrote them: same names, same shapes, so that any number of ranks can go on from them.
    kept = [artifact(s, "shards").path("checkpoints") / "step-000004" for s in ("one", "two")]
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (kept[0] / name).stat().st_size == (kept[1] / name).stat().st_size


def test_a_killed_rank_stops_all_and_the_run_goes_on_with_another_number_of_ranks(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 rank, interrupted; 2 ranks, of which one is killed; 1 rank to the end: the losses are those of a run that nothing happened to."""
    # A low rate: at a high one rounding grows into another trajectory within hundreds of steps, on any number of ranks.
    settings = {"steps": 240, "batch": 4, "accumulate": 1, "resume": 0.05, "optimizer": "adamw", "rate": 0.0003, "every": 0}
    words = ("run", recipe({"base": settings}), "--store")
    assert main([*words, "whole"]) == 0
    one_step = Trainer.one_step

    def interrupted(trainer: Trainer) -> dict[str, Any]:
        if trainer.step == 20:
            raise KeyboardInterrupt
        return one_step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "one_step", interrupted)
        assert main([*words, "cut"]) == 130
    second = start(*words, "cut", "--ranks", "2")
    _wait_for_checkpoint(second, 20)
    child = int(Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()[0])
    began = time.monotonic()
    os.kill(child, signal.SIGKILL)
    err = finish(second, status=1)
    assert time.monotonic() - began < 30
    assert "goes on from step" in err
    assert "rank 1: it was killed by signal 9" in err
    assert "traceback" not in err.lower()
    assert len(err.strip().splitlines()) <= 24
    assert main([*words, "cut"]) == 0
    found = losses("cut", "base")
    assert len(found) == 240
    np.testing.assert_allclose(found, losses("whole", "base"), rtol=1e-3)
    assert (found[0] - found[-1]) > 0.1 * found[0]


def _wait_for_checkpoint(process: subprocess.Popen[str], beyond: int) -> None:
    """Until a resume point after that step is there."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        if any(int(p.name.removeprefix("step-")) > beyond for p in Path("cut").glob("drafts/*/resume/step-*")):
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint came")


@pytest.mark.parametrize(
    ("words", "environ", "says"),
    [
        (["--ranks", "0"], {}, "0 ranks cannot run"),
        (["--ranks", "2"], {"RANK": "0", "WORLD_SIZE": "2"}, "leave --ranks out"),
        ([], {"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2"),
        ([], {"RANK": "one", "WORLD_SIZE": "2"}, "no numbers"),
        ([], {"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], environ: dict[str, str], says: str
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(["run", recipe({"base": {}}), "--store", "s", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(Path("s").glob("artifacts/*"))
