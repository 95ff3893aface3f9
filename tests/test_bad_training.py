"""Bad input of a training through the command line: told before long work, with the recipe's line or the override, and status 2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.cli.main import main
from cairn.errors import Lost, UserError
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.recipe import load_recipe

RECIPE = """\
recipe: bad
seed: 1
stages:
  tokenizer:
    kind: tokenizer
    vocab_size: 300
    data: [{name: mine, path: rows.jsonl}]
  chat:
    kind: train
    tokenizer: tokenizer
    model: {family: qwen3, hidden_size: 16, layers: 1, heads: 2, intermediate_size: 16, context: 64}
    data: [{name: mine, path: rows.jsonl}]
    steps: 2
    sequence_length: 32
    batch_sequences: 1
  tuned:
    kind: train
    init: chat
    adapter: {rank: 2}
    data: [{name: mine, path: rows.jsonl}]
    steps: 2
    sequence_length: 32
    batch_sequences: 1
"""
Refused = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the recipe and its rows; the store is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAIRN_STORE", str(tmp_path / "store"))
    (tmp_path / "bad.yaml").write_text(RECIPE)
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"It is {i}."}]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """refused(verb, *overrides, says): the command ends with status 2 and one screen that says so, before any stage ran."""

    def call(verb: str, *overrides: str, says: tuple[str, ...], more: tuple[str, ...] = ()) -> str:
        before = sorted(folder.glob("store/artifacts/*"))
        status = main([verb, "bad.yaml", *(word for one in overrides for word in ("--set", one)), *more])
        out, err = capsys.readouterr()
        assert status == 2, out + err
        assert out == ""
        assert len(err.splitlines()) <= 24
        assert "{'" not in err, "a whole mapping buries what is said"
        for words in (*says, "   at: ", "   do: "):
            assert words in err
        assert sorted(folder.glob("store/artifacts/*")) == before, "it was told only after other stages had run"
        return err

    return call


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("chat.model.head_size=3", ("a head of size 3", "rotary", "--set chat.model.head_size=3", "even")),
        ("chat.model.head_size=7", ("head", "stages.chat.model")),
        ("chat.model.extra={rope_parameters: 3}", ("'qwen3' cannot have this shape", "rope_parameters", "model.extra")),
        ("chat.model.extra={slidin_window: 3}", ("no key 'slidin_window'", "'sliding_window'", "--set chat.model.extra")),
        ("chat.model.family=qwen33", ("'qwen33'", "'qwen3'", "--set chat.model.family=qwen33")),
        ("tuned.adapter.targets=[q_prj]", ("no matrix 'q_prj'", "'q_proj'", "--set tuned.adapter.targets=[q_prj]")),
        ("chat.adapter={rank: 2}", ("an adapter needs a trained model: give init or checkpoint\n", "bad.yaml, line 8, stages.chat")),
        ("chat.sequence_length=65", ("sequence_length (65) is longer than the model's context (64)\n", "bad.yaml, line 8, stages.chat")),
        ("tuned.sequence_length=65", ("longer than the model's 64 positions", "--set tuned.sequence_length=65", "64 or less")),
        ("chat.optimizer=adamw", ("keys and their values belong here (got 'adamw')", "--set chat.optimizer=adamw", "known: kind, lr")),
        ("chat.model=qwen3", ("keys and their values belong here", "--set chat.model=qwen3", "family, hidden_size")),
        ("chat.tokens=100", ("give either steps or tokens\n", "bad.yaml, line 8, stages.chat")),
        ("chat.schedule={warmup_steps: 3}", ("warm-up (3 steps) is longer than the run (2)\n",)),
        ("chat.data.mine.weight=0", ("above zero, not 0", "remove the source")),
        ("chat.memory.budget_gb=0.001", ("the budget is 0.0 GB", "--set chat.memory.budget_gb=0.001", "batch_sequences")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_contradicts_itself_is_told_before_any_stage_runs(
    refused: Refused, override: str, says: tuple[str, ...], verb: str
) -> None:
    refused(verb, override, says=says)


def test_a_stages_key_is_told_with_the_recipes_line(folder: Path, refused: Refused) -> None:
    (folder / "bad.yaml").write_text(RECIPE.replace("adapter: {rank: 2}", "adapter: {rank: 2, targets: [q_prj]}"))
    refused("plan", says=("at: bad.yaml, line 19, stages.tuned.adapter.targets",))


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ("the file is empty", "fill it")),
        ('{"messages": [\n', ("row 1",)),
        ('{"messages": []}\n', ("row 1", "messages")),
    ],
    ids=["empty", "broken", "no messages"],
)
def test_files_without_rows_are_refused_by_a_plan_too(
    folder: Path, refused: Refused, content: str, says: tuple[str, ...], verb: str
) -> None:
    (folder / "other.jsonl").write_text(content)
    refused(verb, "tuned.data=[{name: mine, path: other.jsonl}]", says=("other.jsonl", *says))


def test_what_no_memory_holds_is_refused_by_a_run_and_shown_by_a_plan(refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    huge = "chat.batch_sequences=1000000000"
    refused("run", huge, says=("'chat' would take about", "TB of memory, this machine has", "bad.yaml, line 8", "batch_sequences"))
    assert main(["plan", "bad.yaml", "--set", huge]) == 0
    assert "chat takes more memory than the" in capsys.readouterr().out


def test_a_mistake_without_a_place_has_the_stages_line(folder: Path) -> None:
    recipe = load_recipe("bad.yaml")
    assert recipe.told("chat", UserError("it went wrong")).where == "bad.yaml, line 8, stages.chat"
    for error in (UserError("a bad row", where="rows.jsonl, row 2"), Lost("rank 1 is gone")):
        assert recipe.told("chat", error) is error


def test_more_ranks_than_a_machine_can_hold(refused: Refused) -> None:
    refused("run", says=("100000 ranks on", "cores", "--ranks"), more=("--ranks", "100000"))


def test_a_backend_that_cannot_serve_is_told_with_its_override(refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "bad.yaml", "--until", "tokenizer"]) == 0
    capsys.readouterr()
    refused("run", "chat.attention=flex", says=("'flex' cannot serve this model", "at: --set chat.attention=flex", "auto"))


def test_a_checkpoint_that_does_not_fit_is_told_by_a_plan(folder: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "bad.yaml", "--until", "chat", "--json"]) == 0
    key = json.loads(capsys.readouterr().out)["stages"][-1]["key"]
    shutil.copytree(Artifact(Store(folder / "store").artifacts / key).path("model"), folder / "model")
    given = ("chat.checkpoint=model", "chat.model=null")
    refused("plan", *given, "chat.sequence_length=65", says=("model's 64 positions", "--set chat.sequence_length=65"))
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    refused("plan", *given, says=("ids, the model's vocabulary only 200", "belongs to this model"))
    (folder / "model" / "tokenizer.json").unlink()
    refused("plan", *given, "chat.tokenizer=null", says=("holds no tokenizer", "tokenizer.json"))


def test_a_rank_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Killed before its ranks had met it, rank 0 left them waiting for it for ten minutes, each with its memory."""
    rank = "import time; from cairn.pipeline.team import _leave_with_parent; _leave_with_parent(); print('up', flush=True); time.sleep(60)"
    first = (
        "import os, subprocess, sys, time; from cairn.pipeline.team import PARENT\n"
        "env = os.environ | {PARENT: str(os.getpid())}\n"
        f"child = subprocess.Popen([sys.executable, '-c', {rank!r}], env=env, start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", first], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = sorted(process.stdout.readline().strip() for _ in range(2))
    assert told[1] == "up"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 30
    while _lives(int(told[0])) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _lives(int(told[0]))


def _lives(pid: int) -> bool:
    """Whether there is such a process that is not merely waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
