"""Preferences through the command line: reference, training, rewards, best of N, and pairs that are trained on again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.resolve import resolve_artifact
from cairn.pipeline.stages.best_of import BestOfConfig, Group, choose
from cairn.train.loop import read_metrics

from .small import head

DPO = """\
  {name}:
    kind: train
    objective: {objective}
    init: base
    data: [{{name: p, path: pairs.jsonl}}]
    steps: {steps}
    sequence_length: 64
    batch_sequences: 8
    optimizer: {{kind: adamw, lr: 0.001}}
    checkpoints: {{every: {every}, resume_seconds: {resume}}}
"""
DEFAULTS = {"objective": "preference", "steps": 8, "every": 4, "resume": 20}
SAMPLING = "sampling: {temperature: 1.0, max_new_tokens: 8}"
ASKED = "kind: best_of, model: base, data: [{name: q, path: talk.jsonl, limit: 12}]"


def stage(name, more="", **settings):
    return DPO.format(name=name, **DEFAULTS | settings) + "".join(f"    {line}\n" for line in more.splitlines())


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """recipe(stages) writes the recipe and its rows: questions, whose good answers are in one word and bad ones in another."""
    draw = random.Random(0)
    talk, pairs = [], []
    for i in range(60):
        question = [{"role": "user", "content": f"Say {draw.randint(0, 999)} and {i}"}]
        good, bad = ([{"role": "assistant", "content": word * draw.randint(1, 3)}] for word in ("yes ", "no "))
        talk.append({"messages": question + (good if i % 2 else bad), "meta": {"expected": "yes"}})
        pairs.append({"messages": question, "chosen": good, "rejected": bad})
    for name, rows in (("talk", talk), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    def write(*stages: str) -> str:
        (tmp_path / "r.yaml").write_text(head() + "".join(stages))
        return "r.yaml"

    return write


def artifact(store: str, name: str) -> Artifact:
    return resolve_artifact(f"small/{name}", Store(Path(store)))


def lines(store, name):
    return list(read_metrics(artifact(store, name).path("metrics.jsonl")))


def run(path, *words, status=0, store="one"):
    assert main(["run", path, "--store", store, *words]) == status


REFERENCE = "  ref: {kind: reference, model: base, data: [{name: p, path: pairs.jsonl}], sequence_length: 64}\n"
REWARD = stage("judge", objective="reward", steps=30)
BEST = f"  best: {{{ASKED}, reward: judge, answers: 4, pairs: worst, unfinished: keep, {SAMPLING}}}\n"
AGAIN = """\
  again:
    kind: train
    objective: preference
    init: base
    data: [{name: p, stage: best, file: pairs.jsonl}]
    steps: 3
    sequence_length: 64
    batch_sequences: 4
"""


def test_from_a_reference_to_pairs_that_are_trained_on_again(recipe):
    lora = "adapter: {kind: lora, rank: 4, alpha: 8}"
    path = recipe(REFERENCE, stage("shared", "reference: ref"), stage("own"), stage("light", lora), REWARD, BEST, AGAIN)
    run(path)
    # The stage's numbers are those that a training measures itself, and an adapter's are those with the adapter off.
    assert [line["loss"] for line in lines("one", "shared")] == pytest.approx([line["loss"] for line in lines("one", "own")], rel=1e-4)
    assert lines("one", "light")[0]["objective"]["kl"] == pytest.approx(0, abs=1e-6)
    assert artifact("one", "own").path("reference.safetensors").is_file()
    assert not artifact("one", "shared").path("reference.safetensors").exists()
    assert lines("one", "own")[-1]["objective"]["margin"] > 0.05
    assert "warnings" in artifact("one", "own").record.metrics
    judged = artifact("one", "best")
    texts = (judged.path(f"{name}.jsonl").read_text() for name in ("samples", "best", "pairs"))
    samples, best, pairs = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert (len(samples), len(best)) == (48, 12)
    for i, row in enumerate(best):
        assert row["meta"]["score"] == max(s["meta"]["score"] for s in samples[4 * i : 4 * i + 4])
    assert pairs
    for pair in pairs:
        assert pair["meta"]["scores"][0] > pair["meta"]["scores"][1]
    # The reward learnt which word is better.
    from cairn.chat.format import load_format
    from cairn.chat.render import Renderer
    from cairn.model.reward import load_reward, rewards
    from cairn.tokenizer.load import Tokenizer

    folder = artifact("one", "judge").path("model")
    renderer = Renderer(load_format(str(folder)), Tokenizer.load(folder))
    rows = [json.loads(x) for x in Path("pairs.jsonl").read_text().splitlines()]
    good, bad = ([renderer.render(row["messages"] + row[key]).ids for row in rows] for key in ("chosen", "rejected"))
    model = load_reward(folder)
    assert np.mean(np.array(rewards(model, good)) > np.array(rewards(model, bad))) > 0.9
    assert main(["verify", "small/own", "--replay", "--interval", "0:4", "--store", "one"]) == 0


def test_a_reward_model_in_a_folder_scores_as_the_stage_that_made_it(recipe, capsys):
    run(recipe(REWARD, BEST), "--until", "best")
    shutil.copytree(artifact("one", "judge").path("model"), "judge-folder")
    run(recipe(REWARD, BEST, BEST.replace("best:", "far:").replace("reward: judge", "reward_checkpoint: judge-folder")), "--until", "far")
    ours, theirs = (artifact("one", name).path("samples.jsonl").read_bytes() for name in ("best", "far"))
    assert ours == theirs
    shutil.rmtree("judge-folder")
    assert main(["run", "r.yaml", "--store", "two"]) == 2
    assert "judge-folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(recipe):
    path = recipe(stage("own", "preference: {loss: kto}", steps=60, every=20, resume=0.05))
    run(path)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "cairn", "run", path, "--store", "two"]
    process = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while time.monotonic() < until and process.poll() is None and not list(Path("two/drafts").glob("*/resume/step-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(path, store="two")
    # Whichever stage it was killed in.
    assert artifact("one", "own").record.digest == artifact("two", "own").record.digest


@pytest.mark.slow
def test_two_ranks_change_nothing_but_rounding(recipe):
    """Replicas and slices; kto's reference point goes over both."""
    path = recipe(
        stage("kto", "preference: {loss: kto}\naccumulate: 2\nmemory: {sharding: full}"), stage("dpo", "accumulate: 2"),
        stage("judge", "accumulate: 2\nmemory: {sharding: full}", objective="reward"),
    )  # fmt: skip
    run(path)
    # The same base for both: one that ranks trained would differ in its last digits already.
    run(path, "--until", "base", store="two")
    done = subprocess.run(
        [sys.executable, "-m", "cairn", "run", path, "--store", "two", "--ranks", "2"], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("kto", "dpo", "judge"):
        for one, two in zip(lines("one", name), lines("two", name), strict=True):
            assert two["loss"] == pytest.approx(one["loss"], rel=2e-4), name
            assert two["objective"]["logp_chosen" if name != "judge" else "margin"] == pytest.approx(
                one["objective"]["logp_chosen" if name != "judge" else "margin"], rel=1e-2, abs=1e-3
            )


@pytest.mark.parametrize(("pairs", "keys"), [("random", {"chosen", "rejected"}), ("ranked", {"ranked"})])
def test_a_function_of_score_chooses(recipe, capsys, pairs, keys):
    path = recipe(
        f"  best: {{{ASKED}, metric: exact, answers: 6, least: 0.5, pairs: {pairs}, unfinished: keep, {SAMPLING}}}\n"
    )
    status = main(["run", path, "--store", "one"])
    told = capsys.readouterr().err
    if status:  # a model this small may never be right: then that is said
        assert "all have the same score" in told
        return
    rows = [json.loads(x) for x in artifact("one", "best").path("pairs.jsonl").read_text().splitlines()]
    assert rows
    assert all(keys <= set(row) for row in rows)


def test_a_text_that_was_scored_twice_stands_once_in_a_ranking():
    """A reward model may round it otherwise in another batch, and a row with equal answers is refused by its reader."""
    asked = [{"role": "user", "content": "?"}]
    answers = [{"messages": [*asked, {"role": "assistant", "content": word}], "reason": "stop"} for word in ("b", "a", "b", "c")]
    group = Group({"id": "one"}, answers, [0.5, 1.0, 0.4999999, 0.1])
    told = BestOfConfig.model_validate({"model": "base", "data": [{"name": "a", "path": "a.jsonl"}], "metric": "exact", "pairs": "ranked"})
    _, _, (pair,) = choose([group], told, seed=1)
    assert [one["content"] for (one,) in pair["ranked"]] == ["a", "b", "c"]
    assert pair["meta"]["scores"] == [1.0, 0.5, 0.1]


BAD = {
    "scores that say nothing": (
        f"  best: {{{ASKED}, metric: number, answers: 2, unfinished: keep, {SAMPLING}}}\n", "all have the same score",
    ),
    "a greedy choice": (f"  best: {{{ASKED}, metric: exact, sampling: {{}}}}\n", "temperature 0"),
    "no score": (f"  best: {{{ASKED}, {SAMPLING}}}\n", "either reward, reward_checkpoint, metric or judge"),
    "a language model as judge": (
        f"  best: {{{ASKED}, reward: base, {SAMPLING}}}\n", "no reward model",
    ),
    "rows without preference": (stage("x").replace("pairs.jsonl", "talk.jsonl"), "no preference"),
    "a reference for simpo": (REFERENCE + stage("x", "reference: ref\npreference: {loss: simpo}"), "have none"),
    "a loss for another objective": (stage("x", "preference: {loss: ipo}", objective="reward"), "belongs to the objective preference"),
    "a reference of other rows": (
        REFERENCE.replace("pairs.jsonl}", "pairs.jsonl, limit: 20}") + stage("x", "reference: ref"), "other documents",
    ),
    "no margin where each row's own is asked for": (
        stage("x", "reward: {margin: rows}", objective="reward"), "the row has no margin",
    ),
    "a prompt longer than the sequence": (stage("x").replace("sequence_length: 64", "sequence_length: 8"), "no row fits into 8 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_status_2_and_a_reason(recipe, capsys, name):
    stages, words = BAD[name]
    path = recipe(stages)
    assert main(["run", path, "--store", "one"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_score_that_is_not_finite_is_told(recipe, monkeypatch, capsys, value):
    from cairn.model import reward

    path = recipe(REWARD, BEST)
    monkeypatch.setattr(reward, "rewards", lambda model, rows, batch: [value] * len(rows))
    assert main(["run", path, "--store", "one"]) == 2
    assert f"the score of an answer is {value}" in " ".join(capsys.readouterr().err.split())
