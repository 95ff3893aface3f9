"""`cairn bench`, from the outside on made-up benchmarks, and the logic of the real ones on results made by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cairn
from cairn.cli.main import main
from cairn.errors import UserError
from cairn.ledger.store import Store
from cairn.pipeline.bench import call_cairn, load_benchmark, make_options, met, missed, row, skipped, workspace

Capture = pytest.CaptureFixture[str]

FAKE = '''
"""Measures nothing much.

More about it.
"""
from __future__ import annotations

from pathlib import Path

from cairn.config import Config
from cairn.pipeline.bench import row, say


class Options(Config):
    store: Path | None = None
    times: int = 3


def run(options: Options) -> list[dict]:
    say("at work")
    return [row("speed", 6.0, ">= 3", peer=2.0), row("rounds", options.times, "== 3"), row("for information", 1.5)]
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one benchmark of its own."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "quick.py").write_text(FAKE)
    (tmp_path / "benchmarks" / "_shared.py").write_text("raise SystemExit('never loaded')")
    monkeypatch.setattr(cairn, "__file__", str(tmp_path / "src" / "cairn" / "__init__.py"))
    yield tmp_path
    sys.modules.pop("cairn_benchmark_quick", None)


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    return load_benchmark("demo")


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    return load_benchmark("faults")


# -- the verb -------------------------------------------------------------------------------------------------------


def test_json_is_one_object_and_progress_goes_elsewhere(fake: Path, capsys: Capture) -> None:
    assert main(["bench", "quick", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found) == {"environment", "rows"}
    assert found["environment"]["python"]
    assert [tuple(r) for r in found["rows"]] == [("measure", "ours", "peer", "ratio", "must", "ok")] * 3
    assert found["rows"][0] == {"measure": "speed", "ours": 6.0, "peer": 2.0, "ratio": 3.0, "must": ">= 3", "ok": True}
    assert "at work" in err


def test_a_missed_bound_ends_with_status_1(fake: Path, capsys: Capture) -> None:
    assert main(["bench", "quick", "--times", "2"]) == 1
    out, err = capsys.readouterr()
    assert "MISSED" in next(line for line in out.splitlines() if "rounds" in line)
    assert "MISSED" not in next(line for line in out.splitlines() if "speed" in line)
    assert "1 of 2 bounds missed" in err


def test_without_a_name_all_are_listed(fake: Path, capsys: Capture) -> None:
    assert main(["bench"]) == 0
    assert capsys.readouterr().out == "quick  Measures nothing much.\n"
    assert main(["bench", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"benchmarks": {"quick": "Measures nothing much."}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quik"], "did you mean 'quick'"),
        (["../quick"], "no benchmark is called"),
        (["_shared"], "no benchmark is called"),
        (["quick", "--no-replay"], "no option 'replay'"),
        (["quick", "--set", "tims=2"], "did you mean 'times'"),
        (["quick", "--set", "times"], "name=value"),
        (["quick", "--set", "times=many"], "cairn bench quick, times"),
        (["quick", "--set", "times=[1"], "not valid YAML"),
    ],
)
def test_mistakes_are_told(fake: Path, capsys: Capture, words: list[str], message: str) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_installed_package_without_its_repository_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(cairn, "__file__", str(tmp_path / "lib" / "site-packages" / "cairn" / "__init__.py"))
    assert main(["bench", "demo"]) == 2
    assert "from a clone" in capsys.readouterr().err


# -- what benchmarks share ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("must", "value", "ok"),
    [
        (">= 0.95", 0.95, True), (">= 0.95", 0.9499, False), ("<= 600", 600, True), ("<= 600", 600.1, False),
        ("== 20", 20, True), ("== 20", 19, False), ("< 2", 2, False), ("< 2", 1.99, True), ("> -1.5", -1, True), ("> 3", 3, False),
        (">= 0", None, False), (">= 0", float("nan"), False),
    ],
)  # fmt: skip
def test_bounds(must: str, value: float | None, ok: bool) -> None:
    assert met(must, value) is ok


@pytest.mark.parametrize("must", ["", "0.95", "=> 3", "== twenty", ">= 1e3 or so"])
def test_a_bound_that_is_none_is_our_mistake(must: str) -> None:
    with pytest.raises(ValueError, match="not a bound"):
        met(must, 1.0)


def test_a_bound_is_about_the_ratio_where_there_is_a_peer() -> None:
    assert row("x", 4.0, ">= 3", peer=2.0)["ok"] is False
    assert row("x", 4.0, ">= 2", peer=2.0)["ok"] is True
    assert row("x", 4.0, ">= 2", peer=0.0)["ok"] is False
    assert row("x", None, ">= 2", peer=2.0)["ok"] is False


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    rows = [skipped("x", ">= 2", "no such device"), row("y", None, ">= 1")]
    assert rows[0]["ok"] is None
    assert rows[0]["ours"] is None
    assert "no such device" in rows[0]["measure"]
    assert missed(rows) == rows[1:]


def test_a_workspace_goes_unless_there_is_something_to_see(tmp_path: Path, capsys: Capture) -> None:
    with workspace(None, "x") as place:
        (place.folder / "file").write_text("")
        gone = place.folder
    assert not gone.exists()
    with workspace(None, "x") as place:
        place.keep = True
    assert str(place.folder) in capsys.readouterr().err
    place.folder.rmdir()
    with workspace(tmp_path / "mine", "x") as place:
        (place.folder / "file").write_text("")
    assert (tmp_path / "mine" / "file").exists()
    with pytest.raises(UserError, match="empty folder"), workspace(tmp_path / "mine", "x"):
        pass


def test_a_measured_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    done = call_cairn(["--version"])
    assert done.out == f"cairn {cairn.__version__}\n"
    assert done.seconds > 0
    with open(tmp_path / "log", "w") as log, pytest.raises(UserError, match="status 2"):
        call_cairn(["run", "no-such-recipe"], log=log)
    assert "no-such-recipe" in (tmp_path / "log").read_text()


# -- demo -----------------------------------------------------------------------------------------------------------


def scores(**changed: Any) -> dict[str, dict[str, Any]]:
    skills = ("functions", "arithmetic", "facts", "identity", "json", "lists", "refusal", "harmless", "korean", "orders", *ATTRIBUTES)
    return {skill: {"value": 0.97, "n": 480} for skill in skills} | changed


ATTRIBUTES = ("verbosity", "complexity", "humor", "toxicity")
BESIDE = {
    "steady": {"pebble-manners/manners": 0.01, "pebble-stories/stories": 0.6, "pebble-short/functions": 0.97},
    "preferred": {"pebble-manners/manners": 0.9, "pebble-short/functions": 0.95},
    "rewarded": {"pebble-stories/stories": 0.9, "pebble-short/functions": 0.99},
}


def beside(**changed: dict[str, float]) -> dict[str, dict[str, Any]]:
    found = {name: known | changed.get(name, {}) for name, known in BESIDE.items()}
    return {name: {suite: {"value": value, "n": 60} for suite, value in known.items()} for name, known in found.items()}


def test_demo_bounds_every_score_that_was_promised(demo: ModuleType) -> None:
    rows = demo.score_rows(scores(korean={"value": 0.1, "n": 40}))
    assert missed(rows) == []
    bounds = {r["measure"].partition(",")[0]: r["must"] for r in rows[1:]}
    promised = dict.fromkeys(("functions", "facts", "identity", "json", "lists", "refusal", "harmless"), ">= 0.95")
    assert bounds == {**promised, "arithmetic": ">= 0.90", "orders": ">= 0.90", **dict.fromkeys(ATTRIBUTES, ">= 0.9"), "korean": ""}
    assert "of 480" in rows[1]["measure"]
    assert "humor, rank correlation of 480" in [r["measure"] for r in rows]


def test_demo_bounds_what_the_models_beside_the_released_one_gain_and_lose(demo: ModuleType) -> None:
    rows = demo.beside_rows(beside())
    assert [r["ours"] for r in rows] == [89.0, 2.0, 30.0, -2.0]
    assert missed(rows) == []
    fallen = demo.beside_rows(beside(preferred={"pebble-short/functions": 0.9}, rewarded={"pebble-stories/stories": 0.6}))
    assert [r["measure"].partition(" (")[0] for r in missed(fallen)] == [
        "preferred: points of pebble-short/functions lost", "rewarded: points of pebble-stories/stories gained",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "measure"),
    [
        ({"functions": {"value": 0.94, "n": 480}}, "functions, share right of 480"),
        ({"functions": {"value": 1.0, "n": 299}}, "functions, held-out questions asked"),
        ({"arithmetic": {"value": 0.89, "n": 400}}, "arithmetic, share right of 400"),
        ({"harmless": {"value": 0.5, "n": 9}}, "harmless, share right of 9"),
        ({"orders": {"value": 0.89, "n": 120}}, "orders, share right of 120"),
        ({"humor": {"value": 0.89, "n": 150}}, "humor, rank correlation of 150"),
    ],
)
def test_demo_misses_what_falls_short(demo: ModuleType, changed: dict[str, Any], measure: str) -> None:
    assert [r["measure"] for r in missed(demo.score_rows(scores(**changed)))] == [measure]


def test_demo_misses_a_score_that_was_not_measured(demo: ModuleType) -> None:
    some = scores()
    del some["functions"], some["lists"]
    assert [r["measure"] for r in missed(demo.score_rows(some))] == [
        "functions, held-out questions asked", "functions, share right", "lists, share right",
    ]  # fmt: skip


def test_demo_times_and_replays(demo: ModuleType) -> None:
    assert missed(demo.time_rows(599.0, 1.9, 0)) == []
    assert len(missed(demo.time_rows(601.0, 2.1, 1))) == 3
    assert demo.replay_row({"a": [], "b": []}, 2)["ok"] is True
    assert demo.replay_row({"a": [], "b": [{"path": "x", "why": "y"}]}, 2)["ok"] is False
    assert demo.replay_row(None, 2)["ok"] is None
    assert demo.stage_rows([{"name": "chat", "seconds": 3.5}])[0] == row("stage chat, time in s", 3.5)


def test_demo_runs_the_built_in_recipe_and_reads_its_records(
    demo: ModuleType, store: Store, dummies: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The whole walk with `cairn` replaced by one that has an evaluation in no time."""
    from cairn.ledger.record import Record, hash_outputs, outputs_digest

    calls = []

    def fake_cairn(words: list[str], **_: Any) -> Any:
        calls.append(words)
        if words[0] == "verify":
            return demo_finished(2 if words[1] == "pebble/eval" else 0, json.dumps({"ok": False, "differs": DIFFERS.get(words[1], [])}))
        place, status = Store(words[words.index("--store") + 1]), "ran" if len(calls) == 1 else "in store"
        if status == "ran":
            whole = {f"pebble/{skill} metric": score for skill, score in scores().items()}

            def commit(key: str, name: str, model: str, scored: dict[str, Any]) -> None:
                def record(folder: Path) -> Record:
                    outputs, _ = hash_outputs(folder)
                    digest = outputs_digest(outputs)
                    facts: dict[str, Any] = {"config": {"model": model}, "code": "", "seed": 1, "metrics": {"scores": scored}}
                    return Record(kind="evaluate", name=name, key=key, outputs=outputs, digest=digest, **facts)

                place.draft(key).joinpath("results.json").write_text("{}")
                place.commit(key, record)
                place.name("pebble", name, key)

            for model, known in beside().items():
                scored = {f"{suite} metric": score for suite, score in known.items()}
                name = "eval" if model == "steady" else f"eval-{model}"
                commit(model, name, model, scored | (whole if model == "steady" else {}))
            # What another model scores is not the released one's.
            commit("chat", "eval-chat", "chat", {"pebble/orders metric": {"value": 0.0, "n": 480}})
        return demo_finished(0, json.dumps({"stages": [{"name": n, "status": status, "seconds": 1.0} for n in ("chat", "eval")]}))

    monkeypatch.setattr(demo, "call_cairn", fake_cairn)
    rows = demo.run(make_options("demo", demo, {"store": store.root}))
    assert [r["measure"] for r in missed(rows)] == [demo.REPLAY]
    assert next(r for r in rows if r["measure"] == demo.REPLAY)["ours"] == 1
    assert next(r for r in rows if r["measure"].startswith("facts"))["ours"] == 0.97
    assert "other bytes" in capsys.readouterr().err
    calls.clear()
    again = demo.run(make_options("demo", demo, {"store": store.root.parent / "two", "replay": False}))
    assert missed(again) == []
    assert [words[0] for words in calls] == ["run", "run"]


DIFFERS = {"pebble/eval": [{"path": "results.json", "why": "other bytes"}]}


def demo_finished(status: int, out: str) -> Any:
    from cairn.pipeline.bench import Finished

    return Finished(status, 1.0, out)


# -- cli ------------------------------------------------------------------------------------------------------------


def test_cli_bounds_the_help_by_its_median(monkeypatch: pytest.MonkeyPatch) -> None:
    from cairn.pipeline.bench import Finished

    bench, taken = load_benchmark("cli"), iter(())

    def fake_cairn(words: list[str], **_: Any) -> Finished:
        return Finished(0, next(taken) if words == ["--help"] else 0.1, "")

    monkeypatch.setattr(bench, "call_cairn", fake_cairn)
    for times, ok in (([9.0, 0.2, 0.9, 0.25], True), ([0.1, 0.2, 0.31, 0.32], False)):
        taken = iter(times)
        rows = bench.run(make_options("cli", bench, {"times": 3}))
        assert [r["must"] for r in rows] == ["< 0.3", "< 0.3", "", "", ""]
        assert (rows[0]["ours"], rows[0]["ok"]) == (sorted(times[1:])[1], ok), "the first process is no measurement"


def test_cli_runs_the_commands_that_it_times(capsys: Capture) -> None:
    # How long they take is the benchmark's affair, not a test's.
    assert main(["bench", "cli", "--times", "1", "--json"]) in (0, 1)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 5
    assert all(r["ours"] > 0 for r in rows)


# -- faults ---------------------------------------------------------------------------------------------------------

STAGES = [{"name": "base", "key": "k1", "digest": "d1"}, {"name": "chat", "key": "k2", "digest": "d2"}]


def test_faults_says_where_a_kill_met_the_run(faults: ModuleType, store: Store) -> None:
    assert faults.spot_of(store, STAGES) == "before base"
    store.draft("k1")
    assert faults.spot_of(store, STAGES) == "in base"
    (store.artifacts / "k1").mkdir(parents=True)
    assert faults.spot_of(store, STAGES) == "before chat"
    (store.artifacts / "k2").mkdir()
    assert faults.spot_of(store, STAGES) == "after the last stage"


def test_faults_counts_identical_runs_only(faults: ModuleType) -> None:
    kills = [faults.Kill(1, 2.0, "in chat", True, []), faults.Kill(2, 1.0, "in base", False, ["chat"])]
    rows = faults.kill_rows(kills, STAGES, 9.0)
    assert rows[0] == row("of 2 killed runs, all digests identical after another run", 1, "== 2")
    assert [r["ok"] for r in rows[:3]] == [False, True, False]
    assert [r["ours"] for r in rows[1:3]] == [2, 1]
    told = {r["measure"]: r["ours"] for r in rows[3:]}
    assert told["kills that came in chat"] == told["kills that came in base"] == 1
    assert told["runs that went on in the middle of a stage"] == 1
    assert missed(faults.kill_rows(kills[:1], STAGES, 9.0)) == []


def test_faults_refuses_to_compare_runs_of_other_code(faults: ModuleType, store: Store) -> None:
    with pytest.raises(UserError, match="keys changed"):
        faults.differing(STAGES, [STAGES[0], {**STAGES[1], "key": "k3"}], store)


def runs(process: int) -> bool:
    """Whether a process is there and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_faults_kills_a_whole_group_and_sees_one_that_had_ended(
    faults: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, file=sys.stderr, flush=True); time.sleep(60)"
    monkeypatch.setattr(faults, "command_line", lambda words: [sys.executable, "-c", *words])
    lived, ended = faults.kill_after([child], 1.5, tmp_path / "one")
    assert 1.5 <= lived < 30
    assert not ended
    number = int((tmp_path / "one.killed.log").read_text())
    deadline = time.monotonic() + 20
    while runs(number):
        assert time.monotonic() < deadline, "the child was not killed with its parent"
        time.sleep(0.05)
    assert faults.kill_after(["pass"], 60, tmp_path / "two")[1] is True
    with pytest.raises(UserError, match="status 3"):
        faults.kill_after(["raise SystemExit(3)"], 60, tmp_path / "three")


def test_mup_judges_rates_and_slopes() -> None:
    bench = load_benchmark("mup")
    assert bench.slope({64: 3.0, 128: 6.0, 256: 12.0}) == pytest.approx(1.0)
    sizes = {"layer 1": {64: 1.0, 256: 1.0}, "logits": {64: 1.0, 256: 0.25}}
    assert [(r["ours"], r["ok"]) for r in bench.slope_rows("adamw", True, sizes)] == [(1.0, False)]
    shifted = {64: {0.01: 2.0, 0.02: 1.0, 0.04: 3.0}, 256: {0.01: 0.7, 0.02: 0.9, 0.04: 2.0}}
    *_, steps, lost = bench.rate_rows("adamw", True, shifted)
    assert (steps["ours"], steps["ok"]) == (1, True)
    assert lost["ours"] == pytest.approx(0.2)
    assert bench.rate_rows("adamw", False, shifted)[-2]["ok"] is False, "without muP the best rates are to lie further apart"
    blown = {64: {0.01: 1.0, 0.02: float("nan")}}
    assert bench.best_rates(blown) == {64: 0.01}


SMALL = [
    "corpus.scale=0.01", "base.tokens=24576", "base.checkpoints.every=2", "chat.tokens=163840", "chat.checkpoints.every=3",
    "base.model={hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64, context: 1024}",
    "ghost.dialogues=40", "ghost.turns=[2, 2]", "ghost.unfinished=keep", "ghost.sampling.max_new_tokens=12",
    "steady.tokens=12288", "steady.checkpoints.every=2", "preferred.steps=2", "preferred.batch_sequences=2",
    "rewarded.steps=2", "rewarded.rollouts.prompts=2", "rewarded.rollouts.answers=2", "rewarded.rollouts.max_new_tokens=6",
    "eval.suites=[{name: quick, data: [test/facts.jsonl], group_by: skill, max_new_tokens: 4}]",
    "eval-preferred.suites=[{name: quick, data: [test/facts.jsonl], group_by: skill, max_new_tokens: 4}]",
    "eval-rewarded.suites=[{name: quick, data: [test/facts.jsonl], group_by: skill, max_new_tokens: 4}]",
    "eval-chat.suites=[{name: quick, data: [test/facts.jsonl], group_by: skill, max_new_tokens: 4}]",
]  # fmt: skip


@pytest.mark.slow
def test_faults_on_a_very_small_recipe(tmp_path: Path) -> None:
    settings = ["--times", "2", "--set", f"budget={json.dumps(SMALL)}", "--store", str(tmp_path / "stores"), "--json"]
    command = [sys.executable, "-m", "cairn", "bench", "faults", *settings]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)["rows"]
    assert rows[0]["ours"] == 2
    assert [r["ours"] for r in rows[1:3]] == [13, 13]
    assert sorted(p.name for p in (tmp_path / "stores").iterdir() if p.is_dir()) == ["kill-1", "kill-2", "undisturbed"]
