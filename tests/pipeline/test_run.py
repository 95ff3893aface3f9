"""Runs end in the same bytes, however they were stopped, and two at once both end right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cairn.errors import UserError
from cairn.ledger.progress import Silent
from cairn.ledger.store import Store
from cairn.pipeline.plan import make_plan
from cairn.pipeline.recipe import load_recipe
from cairn.pipeline.run import plain, run_recipe

Write = Callable[..., str]
Start = Callable[..., "subprocess.Popen[str]"]

TWO = "  one: {kind: lines, lines: 3}\n  two: {kind: lines, lines: 40, after: one}\n"


def test_stages_run_once_and_records_say_how(write_recipe: Write, store: Store, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("from outside\n")
    recipe = load_recipe(write_recipe(TWO), [f"one.file={tmp_path / 'in.txt'}"])
    first = run_recipe(recipe, store)
    assert [(s.name, s.status) for s in first.stages] == [("one", "ran"), ("two", "ran")]
    assert [s.name for s in first.last] == ["two"]
    record = first.stages[1].artifact.record
    assert record.inputs["one"].key == first.stages[0].artifact.key
    assert record.inputs["one"].digest == first.stages[0].artifact.record.digest
    assert record.metrics == {"lines": 44, "tokens": 44, "ratio": "nan"}
    assert (record.recipe, record.name, record.seed) == ("small", "two", 1)
    assert list(record.outputs) == ["out/lines.txt"]
    assert list(record.logs) == ["logs/began.txt"]
    assert first.stages[0].artifact.path("out/lines.txt").read_text().endswith("from outside\n")
    assert store.named() == {"small": {"one": first.stages[0].artifact.key, "two": record.key}}
    assert not list(store.drafts.iterdir())
    again = run_recipe(recipe, store)
    assert [s.status for s in again.stages] == ["in store", "in store"]
    assert again.ran == 0
    assert [s.json()["digest"] for s in again.stages] == [s.json()["digest"] for s in first.stages]


def test_a_finished_recipe_writes_nothing(write_recipe: Write, store: Store) -> None:
    recipe = load_recipe(write_recipe(TWO))
    run_recipe(recipe, store)
    before = {p: p.stat().st_mtime_ns for p in store.root.rglob("*")}
    run_recipe(recipe, store)
    assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*")} == before


def _wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def _part_lines(store: Store) -> int:
    return max((p.read_text().count("\n") for p in store.drafts.glob("*/resume/lines.part")), default=0)


def _expected_digest(path: str, tmp_path: Path) -> str:
    return run_recipe(load_recipe(path), Store(tmp_path / "clean")).stages[-1].artifact.record.digest


def _json(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.parametrize("lines", [5, 20, 35])
def test_killed_in_mid_stage_it_resumes_to_the_same_bytes(
    write_recipe: Write, cairn_process: Start, store: Store, tmp_path: Path, lines: int
) -> None:
    path = write_recipe(TWO)
    process = cairn_process("run", path, "--store", str(store.root), pause=0.02)
    _wait_for(lambda: _part_lines(store) >= lines)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    begun = [a for a in store.keys() if store.get(a)]  # noqa: SIM118 - a store is no mapping
    assert len(begun) == 1, "the first stage is whole, the second is not there"
    assert [s.begun for s in make_plan(load_recipe(path), store)] == [False, True]
    result = _json(cairn_process("run", path, "--store", str(store.root), "--json"))
    assert [s["status"] for s in result["stages"]] == ["in store", "ran"]
    two = result["stages"][1]
    resumed_at = int((store.artifacts / two["key"] / "logs" / "began.txt").read_text().split()[0])
    assert resumed_at >= lines - 1
    assert two["digest"] == _expected_digest(path, tmp_path)
    assert not list(store.drafts.iterdir())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_nothing_half_written(
    write_recipe: Write, cairn_process: Start, store: Store, tmp_path: Path, number: int, status: int
) -> None:
    path = write_recipe(TWO)
    process = cairn_process("run", path, "--store", str(store.root), pause=0.02)
    _wait_for(lambda: _part_lines(store) >= 5)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in err
    assert "kept" in err
    assert len(store.keys()) == 1
    assert not list(store.root.rglob("*.tmp"))
    result = _json(cairn_process("run", path, "--store", str(store.root), "--json"))
    assert result["stages"][1]["digest"] == _expected_digest(path, tmp_path)


def test_two_runs_at_once_both_end_right(write_recipe: Write, cairn_process: Start, store: Store, tmp_path: Path) -> None:
    path = write_recipe(TWO)
    words = ("run", path, "--store", str(store.root), "--json")
    both = [cairn_process(*words, pause=0.02) for _ in range(2)]
    results = [_json(process) for process in both]
    for index in range(2):
        stages = [r["stages"][index] for r in results]
        assert sorted(s["status"] for s in stages) == ["in store", "ran"], "one run makes it, the other finds it"
        assert stages[0]["digest"] == stages[1]["digest"]
    assert results[0]["stages"][1]["digest"] == _expected_digest(path, tmp_path)


def test_a_run_killed_while_another_waits_lets_the_other_go_on(
    write_recipe: Write, cairn_process: Start, store: Store, tmp_path: Path
) -> None:
    path = write_recipe(TWO)
    words = ("run", path, "--store", str(store.root), "--json")
    first = cairn_process(*words, pause=0.05)
    _wait_for(lambda: _part_lines(store) >= 8)
    second = cairn_process(*words)
    time.sleep(0.6)
    assert second.poll() is None
    first.kill()
    result = _json(second)
    assert result["stages"][1]["status"] == "ran"
    assert result["stages"][1]["digest"] == _expected_digest(path, tmp_path)


def test_fresh_begins_anew(write_recipe: Write, store: Store) -> None:
    recipe = load_recipe(write_recipe("  one: {kind: lines}\n"))
    draft = store.draft(make_plan(recipe, store)[0].node.key)
    (draft / "resume").mkdir()
    (draft / "resume" / "lines.part").write_text("forged\n")
    assert "forged" not in run_recipe(recipe, store, fresh=True).stages[0].artifact.path("out/lines.txt").read_text()


def test_a_damaged_input_stops_the_run_before_its_work(write_recipe: Write, store: Store) -> None:
    path = write_recipe(TWO)
    one = run_recipe(load_recipe(path), store, until="one").stages[0].artifact
    file = one.path("out/lines.txt")
    file.write_bytes(file.read_bytes()[:-2] + b"X\n")
    with pytest.raises(UserError, match="'one' is damaged") as caught:
        run_recipe(load_recipe(path), store)
    assert caught.value.where == str(file)
    assert not list(store.drafts.glob("*/resume"))


@pytest.mark.parametrize(
    ("how", "what"),
    [("ENOSPC", "disk is full"), ("words", "disk is full"), ("EROFS", "Read-only"), ("wrapped", "Read-only"), ("EACCES", "denied")],
)
def test_a_disk_that_refuses_in_mid_stage_is_told_and_nothing_is_lost(write_recipe: Write, store: Store, how: str, what: str) -> None:
    path = write_recipe(f"  one: {{kind: lines}}\n  bad: {{kind: fault, how: {how}}}\n")
    with pytest.raises(UserError, match=what) as caught:
        run_recipe(load_recipe(path), store)
    assert str(store.root) in caught.value.where
    assert "free" in str(caught.value)
    assert len(store.keys()) == 1
    assert len(list(store.drafts.glob("*/half.txt"))) == 1


def test_a_bug_is_not_taken_for_the_users_mistake(write_recipe: Write, store: Store) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        run_recipe(load_recipe(write_recipe("  bad: {kind: fault}\n")), store)


def test_too_little_room_is_told_before_any_work(write_recipe: Write, store: Store) -> None:
    with pytest.raises(UserError, match="too little room"):
        run_recipe(load_recipe(write_recipe("  one: {kind: lines}\n  big: {kind: lines, lines: 999999999999999}\n")), store)
    assert store.keys() == []


def test_progress_is_closed_even_on_failure(write_recipe: Write, store: Store) -> None:
    closed = []

    class Watched(Silent):
        def close(self) -> None:
            closed.append(True)

    with pytest.raises(RuntimeError):
        run_recipe(load_recipe(write_recipe("  bad: {kind: fault}\n")), store, progress=lambda title: Watched())
    assert closed == [True]


def test_metrics_become_json() -> None:
    import numpy as np

    value = {"a": np.float32(0.5), "b": [np.int64(3), (True, None)], 4: float("inf")}
    assert plain(value) == {"a": 0.5, "b": [3, [True, None]], "4": "inf"}
    assert type(plain(np.int64(3))) is int
