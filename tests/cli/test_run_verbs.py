"""The verbs about runs: run, plan, list, trace, verify, diff, doctor, from the outside."""

from __future__ import annotations

import json
import re
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cairn.cli.main import main
from cairn.ledger.store import Store

Write = Callable[..., str]
Call = Callable[..., tuple[int, str, str]]
Capture = pytest.CaptureFixture[str]

TWO = "  one: {kind: lines, lines: 3}\n  two: {kind: lines, lines: 4, after: one}\n"


@pytest.fixture
def call(store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call `cairn` on the test's store: (status, standard output, standard error)."""
    monkeypatch.setenv("CAIRN_STORE", str(store.root))

    def run(*words: str) -> tuple[int, str, str]:
        status = main(list(words))
        return (status, *capsys.readouterr())

    return run


def _json(result: tuple[int, str, str], status: int = 0) -> dict[str, Any]:
    assert result[0] == status, result[2]
    return json.loads(result[1])


def test_run_shows_stages_and_the_summary_of_the_last(call: Call, write_recipe: Write, store: Store) -> None:
    status, out, err = call("run", write_recipe(TWO))
    assert status == 0
    assert "summary: 7 lines" in out
    assert "summary: 3 lines" not in out
    assert "2 of 2 stages ran" in out
    assert str(store.root) in out
    assert "one" in err
    assert "done in" in err


def test_run_json_has_the_fixed_shape_and_the_second_run_finds_all(call: Call, write_recipe: Write) -> None:
    path = write_recipe(TWO)
    first = _json(call("run", path, "--json"))
    assert first["recipe"] == "small"
    assert [set(s) for s in first["stages"]] == [{"name", "key", "status", "seconds", "digest", "metrics"}] * 2
    assert [s["status"] for s in first["stages"]] == ["ran", "ran"]
    second = _json(call("run", path, "--json"))
    assert [s["status"] for s in second["stages"]] == ["in store", "in store"]
    assert [s["digest"] for s in second["stages"]] == [s["digest"] for s in first["stages"]]


def test_a_finished_run_says_so_quickly(write_recipe: Write, cairn_process: Callable[..., subprocess.Popen[str]], store: Store) -> None:
    path = write_recipe(TWO)
    words = ("run", path, "--store", str(store.root))
    assert cairn_process(*words).wait(30) == 0
    began = time.perf_counter()
    out, _ = cairn_process(*words).communicate(timeout=30)
    # The promise is two seconds on an idle machine; tests share theirs.
    assert time.perf_counter() - began < 6
    assert "everything is in the store" in out


def test_run_until_set_and_fresh(call: Call, write_recipe: Write) -> None:
    path = write_recipe(TWO)
    result = _json(call("run", path, "--until", "one", "--set", "one.lines=9", "--fresh", "--json"))
    assert [(s["name"], s["metrics"]["lines"]) for s in result["stages"]] == [("one", 9)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--set", "one.lnies=3"), ["unknown key 'lnies'", "--set one.lnies=3", "'lines'"]),
        (("--until", "tow"), ["no stage 'tow'", "'two'"]),
        (("--set", "one.after=two"), ["form a circle: one -> two -> one", "small.yaml, line 4"]),
        (("--set", "one.file=gone.txt"), ["gone.txt", "check the path"]),
        (("--store", "/dev/null/store"), ["store cannot be written", "/dev/null", "--store"]),
    ],
)
def test_mistakes_are_one_screen_and_status_2(
    call: Call, write_recipe: Write, words: tuple[str, ...], says: list[str]
) -> None:
    status, out, err = call("run", write_recipe(TWO), *words)
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) <= 24
    assert all(text in err for text in says), err


def test_plan_tells_status_and_costs_and_writes_nothing(call: Call, write_recipe: Write, store: Store) -> None:
    path = write_recipe(TWO)
    status, out, _ = call("plan", path)
    assert status == 0
    assert "2 of 2 stages to run: about 1 s; 210 B of disk" in out
    assert "–" in out
    assert not store.root.exists()
    call("run", path, "--until", "one")
    plan = _json(call("plan", path, "--json"))
    assert [(s["name"], s["kind"], s["status"]) for s in plan["stages"]] == [("one", "lines", "in store"), ("two", "lines", "to run")]
    assert plan["stages"][1]["tokens"] == 7, "an estimate may build on those of the stages before"
    assert plan["stages"][1]["parameters"] is None
    ran = _json(call("run", path, "--json"))
    assert [s["key"] for s in ran["stages"]] == [s["key"] for s in plan["stages"]]
    assert "everything is in the store" in call("plan", path)[1]


def test_list_names_recipes_kinds_and_artifacts(call: Call, write_recipe: Write, store: Store) -> None:
    status, out, _ = call("list")
    assert status == 0
    assert "The store is empty" in out
    assert "chatml" in out
    call("run", write_recipe(TWO))
    found = _json(call("list", "--json"))
    assert "lines" in found["kinds"]
    assert [a["names"] for a in found["artifacts"]] in ([["small/one"], ["small/two"]], [["small/two"], ["small/one"]])
    (store.artifacts / found["artifacts"][0]["key"] / "record.json").write_text("{")
    status, out, _ = call("list")
    assert status == 0
    assert "damaged" in out


def test_trace_draws_the_lineage_down_to_the_files(call: Call, write_recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("x")
    yaml = "  a: {kind: lines, file: none}\n  b: {kind: lines, after: a}\n  c: {kind: lines, parts: [{stage: a}, {stage: b}]}\n"
    path = write_recipe(yaml)
    ran = _json(call("run", path, "--set", f"a.file={tmp_path / 'in.txt'}", "--json"))
    status, out, _ = call("trace", "small/c")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("c (lines)")
    assert sum("in.txt" in line for line in lines) == 1, "what was drawn once is not drawn again"
    assert sum("shown above" in line for line in lines) == 1
    tree = _json(call("trace", "small/c", "--json"))
    assert [i["name"] for i in tree["inputs"]] == ["a", "b"]
    assert tree["inputs"][1]["inputs"][0]["key"] == ran["stages"][0]["key"]
    assert tree["inputs"][0]["files"][0]["path"] == str(tmp_path / "in.txt")


def test_verify_names_the_flipped_byte_with_status_2(call: Call, write_recipe: Write, store: Store) -> None:
    ran = _json(call("run", write_recipe(TWO), "--json"))
    assert _json(call("verify", "small/two", "--json")) == {"ok": True, "differs": []}
    file = store.artifacts / ran["stages"][1]["key"] / "out" / "lines.txt"
    original = file.read_bytes()
    file.write_bytes(original[:5] + bytes([original[5] ^ 4]) + original[6:])
    status, out, _ = call("verify", "small/two")
    assert status == 2
    assert "out/lines.txt" in out
    report = _json(call("verify", ran["stages"][1]["key"][:10], "--json"), status=2)
    assert report["ok"] is False
    assert [d["path"] for d in report["differs"]] == ["out/lines.txt"]
    file.write_bytes(original)
    (file.parents[1] / "record.json").write_bytes(b"\0")
    assert _json(call("verify", "small/two", "--json"), status=2)["differs"][0]["path"] == "record.json"


def test_verify_replays_a_stage_or_an_interval(call: Call, write_recipe: Write, tmp_path: Path) -> None:
    call("run", write_recipe(TWO))
    status, out, _ = call("verify", "small/two", "--replay")
    assert status == 0
    assert "1 files came out again, byte for byte" in out
    assert "checkpoint 3 came out of checkpoint 1" in call("verify", "small/two", "--interval", "1:3")[1]
    assert call("verify", "small/two", "--interval", "3:1")[0] == 2
    call("run", write_recipe("  clock: {kind: fault, how: clock}\n"))
    report = _json(call("verify", "small/clock", "--replay", "--json"), status=2)
    assert report["differs"][0]["path"] == "clock.txt"
    status, _, err = call("verify", str(tmp_path))
    assert status == 2
    assert "no artifact" in err


def test_diff_names_the_first_difference_of_each_aspect(call: Call, write_recipe: Write) -> None:
    path = write_recipe(TWO)
    first = _json(call("run", path, "--json"))["stages"][1]["key"]
    call("run", path, "--set", "one.word=other", "--set", "two.lines=5")
    found = _json(call("diff", first[:12], "small/two", "--json"))
    assert found["equal"] is False
    differences = found["differences"]
    assert differences["configuration"] == {"path": "lines", "left": 4, "right": 5}
    assert differences["inputs"]["path"] == "one"
    assert differences["environment"] is None
    assert differences["outputs"]["path"] == "out/lines.txt"
    assert "(line 5)" in differences["outputs"]["why"]
    status, out, _ = call("diff", "small/two", "small/two")
    assert status == 0
    assert "equal, byte for byte" in out


def test_doctor_reports_and_measures(call: Call, store: Store) -> None:
    store.draft("ab" * 32).joinpath("x").write_text("123")
    report = _json(call("doctor", "--json"))
    assert set(report["gemm_gflops"]) == {"fp32", "bf16"}
    assert all(speed > 0.1 for speed in report["gemm_gflops"].values())
    assert report["environment"]["packages"]["torch"]
    assert any("1 unfinished drafts take 3 B" in f["what"] for f in report["findings"])
    assert all(f["level"] in ("missing", "slow", "note") for f in report["findings"])


def test_doctor_knows_the_packages_and_extras_that_the_installation_has() -> None:
    from cairn.pipeline.health import _EXTRAS, _NEEDED

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}

    assert set(_NEEDED) == names(project["dependencies"])
    extras = {extra: names(listed) for extra, listed in project["optional-dependencies"].items() if extra != "dev"}
    assert {extra: set(packages) for extra, (packages, _) in _EXTRAS.items()} == extras


def test_doctor_sees_a_store_that_cannot_be_written_and_too_many_threads(
    call: Call, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.root.mkdir()
    store.drafts.write_text("a file where a folder should be")
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    report = _json(call("doctor", "--fast", "--json"))
    assert report["ok"] is False
    assert any(f["level"] == "missing" and str(store.drafts) in f["what"] for f in report["findings"])
    assert any(f["level"] == "slow" and "999 threads" in f["what"] for f in report["findings"])
    assert call("doctor", "--fast")[0] == 0
