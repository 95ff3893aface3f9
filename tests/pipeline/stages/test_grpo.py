"""Training by rewards through the command line: what is learnt, what is kept, how it goes on, and what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.resolve import resolve_artifact
from cairn.score.exact import exact_match
from cairn.train.loop import read_metrics

from .small import head

GRPO = """\
  {name}:
    kind: grpo
    init: base
    data: [{{name: a, path: talk.jsonl}}]
    metric: {metric}
    rollouts: {{prompts: 8, answers: 6, max_new_tokens: 6, updates: {updates}, forward: {forward}}}
    policy: {{kl: {kl}}}
    steps: {steps}
    sequence_length: 64
    batch_sequences: 8
    optimizer: {{kind: adamw, lr: {lr}}}
    checkpoints: {{every: {every}, resume_seconds: {resume}}}
"""
DEFAULTS = {"metric": "exact", "updates": 1, "forward": "auto", "kl": 0.0, "steps": 12, "lr": 0.01, "every": 0, "resume": 20}


def stage(name="rl", more="", **settings):
    return GRPO.format(name=name, **DEFAULTS | settings) + "".join(f"    {line}\n" for line in more.splitlines())


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """recipe(stages) writes the recipe and its rows: questions that the base learns to answer with either of two words; one is right."""
    draw = random.Random(0)
    rows = []
    for i in range(60):
        question = [{"role": "user", "content": f"Say {draw.randint(0, 9)}"}]
        said = "yes" if i % 2 else "no"
        rows.append({"messages": [*question, {"role": "assistant", "content": said}], "meta": {"expected": "yes"}})
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    def write(*stages: str) -> str:
        (tmp_path / "r.yaml").write_text(head() + "".join(stages))
        return "r.yaml"

    return write


def artifact(store: str, name: str = "rl") -> Artifact:
    return resolve_artifact(f"small/{name}", Store(Path(store)))


def lines(store, name="rl"):
    return list(read_metrics(artifact(store, name).path("metrics.jsonl")))


def rollouts(store, name="rl"):
    return [json.loads(x) for x in artifact(store, name).path("rollouts.jsonl").read_text().splitlines()]


def run(path, *words, status=0, store="one"):
    assert main(["run", path, "--store", store, *words]) == status


def test_the_rewarded_word_wins_and_the_rollouts_say_how(recipe, capsys):
    path = recipe(stage(), stage("loo", "policy: {baseline: leave_one_out, clip_high: 0.28}").replace("    policy: {kl: 0.0}\n", ""))
    run(path)
    told = capsys.readouterr().err
    for name in ("rl", "loo"):
        rewards = [line["objective"]["reward"] for line in lines("one", name)]
        assert rewards[0] < 0.75
        assert rewards[-1] > rewards[0] + 0.2, rewards
    found, record = rollouts("one"), artifact("one").record.metrics
    assert len(found) == record["groups"] == 12 * 8
    assert [line["prompt"] for line in found] == list(range(96))
    silent = sum(len({a["reward"] for a in line["answers"]}) == 1 for line in found)
    assert record["groups_without_variance"] == silent > 0
    assert f"{silent} of 96 groups had answers of one reward only" in told
    for line in found:
        assert len(line["answers"]) == 6
        for answer in line["answers"]:
            assert answer["reward"] == float(answer["reason"] == "stop" and exact_match("yes", answer["text"].partition("<|")[0]))
    # Every round was answered by the weights of its moment.
    assert len({line["weights"] for line in found}) == 12
    # Two samples of a prompt are two draws.
    assert any(len({tuple(a["ids"]) for a in line["answers"]}) > 1 for line in found)


@pytest.mark.slow
def test_a_question_with_what_is_expected_needs_no_answer(recipe):
    """It was refused: nothing could be learnt from such a row, as if its answer were the target."""
    asked = [{**json.loads(line), "id": f"q{i}"} for i, line in enumerate(Path("talk.jsonl").read_text().splitlines())]
    for row in asked:
        row["messages"].pop()
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    run(recipe(stage(steps=1).replace("talk.jsonl", "asked.jsonl")))
    assert len(rollouts("one")) == 8


def test_compiled_and_own_forward_ask_the_same(recipe):
    path = recipe(stage("fast", forward="compiled", steps=2), stage("own", forward="own", steps=2))
    run(path)
    first, second = ([[a["ids"] for a in line["answers"]] for line in rollouts("one", name)] for name in ("fast", "own"))
    assert first == second


def test_a_replay_gives_the_same_bytes_from_the_middle_of_a_round_too(recipe):
    path = recipe(stage(updates=4, every=3, steps=9))
    run(path)
    assert main(["verify", "small/rl", "--replay", "--store", "one"]) == 0
    assert main(["verify", "small/rl", "--replay", "--interval", "3:6", "--store", "one"]) == 0
    assert [line["step"] for line in lines("one")] == list(range(1, 10))
    assert len(rollouts("one")) == 3 * 8
    assert any(line["objective"]["clipped_low"] + line["objective"]["clipped_high"] > 0 for line in lines("one"))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(recipe):
    """Killed after an update in the middle of a round."""
    path = recipe(stage(updates=2, steps=81, resume=0.02, kl=0.05))
    run(path)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "cairn", "run", path, "--store", "two"]
    run(path, "--until", "base", store="two")
    process = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while time.monotonic() < until and process.poll() is None and not list(Path("two/drafts").glob("*/resume/step-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(Path("two/drafts").glob("*/resume/step-*")), "the run was over before it was killed"
    run(path, store="two")
    assert artifact("one").record.digest == artifact("two").record.digest


def test_what_a_kill_left_of_a_round_is_asked_again(recipe):
    """A kill behind a round's rollouts and before any checkpoint of it."""
    path = recipe(stage(steps=4))
    run(path)
    whole = artifact("one").path("rollouts.jsonl").read_text()
    run(path, "--until", "base", store="two")
    from cairn.train import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Optimizer, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        main(["run", path, "--store", "two"])
    [draft] = [p for p in Path("two/drafts").iterdir() if (p / "rollouts.jsonl").is_file()]
    left = (draft / "rollouts.jsonl").read_text()
    assert left
    assert whole.startswith(left)
    (draft / "rollouts.jsonl").write_text(left + '{"half')
    run(path, store="two")
    assert artifact("two").path("rollouts.jsonl").read_text() == whole


def test_kl_holds_the_model_near_its_reference(recipe, capsys):
    lora = "adapter: {kind: lora, rank: 4, alpha: 8}"
    path = recipe(stage("free"), stage("held", kl=2.0), stage("light", lora, kl=0.1))
    run(path)
    told = capsys.readouterr().err
    # Said of the stage without an adapter alone: with one the reference is the same weights.
    assert told.count("frozen copy") == 1
    first = lines("one", "held")[0]["objective"]["kl"], lines("one", "light")[0]["objective"]["kl"]
    assert first == pytest.approx((0, 0), abs=1e-6)
    assert lines("one", "light")[-1]["objective"]["kl"] > 1e-4  # it did move
    assert lines("one", "held")[-1]["objective"]["reward"] < lines("one", "free")[-1]["objective"]["reward"]
    assert "kl" not in lines("one", "free")[0]["objective"]


PRACTICE = """practice:
  sequences: 2
  weight: 0.1
  data: [{name: a, path: other.jsonl}]
"""


def write_other() -> None:
    rows = [{"messages": [{"role": "user", "content": "Then"}, {"role": "assistant", "content": "blue"}]}] * 8
    Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_is_practised_is_learnt_beside_the_rewards(recipe):
    write_other()
    path = recipe(stage(), stage("both", PRACTICE, every=5, steps=12))
    run(path)
    found = lines("one", "both")
    assert found[-1]["objective"]["practice"] < 0.5 * found[0]["objective"]["practice"]
    rewards = [line["objective"]["reward"] for line in found]
    assert rewards[-1] > rewards[0] + 0.2, rewards
    # Both are called `a`, and are told apart.
    assert 0 < found[0]["sources"]["practice/a"]["supervised_tokens"] < found[0]["sources"]["practice/a"]["tokens"] <= 128
    assert found[0]["sources"]["a"]["tokens"] > 0
    assert artifact("one", "both").record.metrics["sources"]["practice/a"]["kept"] == 8
    # The first round is answered by the same weights, with the same draws.
    asked = [[[a["ids"] for a in line["answers"]] for line in rollouts("one", name)[:8]] for name in ("rl", "both")]
    assert asked[0] == asked[1]
    assert main(["verify", "small/both", "--replay", "--interval", "5:10", "--store", "one"]) == 0


@pytest.mark.slow
def test_two_ranks_change_nothing_but_rounding(recipe):
    path = recipe(stage(steps=3, updates=1, kl=0.1))
    run(path)
    run(path, "--until", "base", store="two")
    done = subprocess.run(
        [sys.executable, "-m", "cairn", "run", path, "--store", "two", "--ranks", "2"], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for one, two in zip(rollouts("one")[:8], rollouts("two")[:8], strict=True):
        # What is measured may be rounded otherwise: the ranks cut their passes at other places.
        assert two.pop("reference") == pytest.approx(one.pop("reference"), rel=1e-4)
        assert one == two
    for one, two in zip(lines("one")[:2], lines("two")[:2], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-5)
        assert two["objective"]["reward"] == one["objective"]["reward"]


BAD = {
    "a metric that nobody reaches": (stage(metric="json"), "all 6 answers to each got the same reward"),
    "no such metric": (stage(metric="exakt"), "no metric is named 'exakt'"),
    "a metric of another source": (stage(metric="{b: exact}"), "the source 'a' has no metric"),
    "a key of other trainings": (stage("rl", "accumulate: 2"), "a stage of kind grpo has no accumulate"),
    "labels that nothing is learnt from": (stage("rl", "labelled: [a]\nformat: karakuri"), "a stage of kind grpo has no labelled"),
    "the objective without its stage": (
        "  x: {kind: train, objective: grpo, init: base, data: [{name: a, path: talk.jsonl}], steps: 1}\n", "make it a stage of kind grpo",
    ),
    "a practice that weighs its sources": (
        stage("rl", "practice: {data: [{name: b, path: talk.jsonl, loss_weight: 2.0}]}"), "which a practice does not know",
    ),
    "a practice of two sources of one name": (
        stage("rl", "practice: {data: [{name: b, path: talk.jsonl}, {name: b, path: talk.jsonl}]}"), "two sources of one name",
    ),
    "a practice without rows": (stage("rl", "practice: {data: []}"), "at least 1 item"),
    "a reference that would move": (stage("rl", "adapter: {train: [embeddings]}", kl=0.1), "kl needs a reference that stands still"),
    "no room for a prompt": (stage().replace("sequence_length: 64", "sequence_length: 8"), "no prompt leaves room for 6 tokens"),
    "one answer": (stage().replace("answers: 6", "answers: 1"), "greater than or equal to 2"),
    "weights divided over ranks": (stage("rl", "memory: {sharding: full}"), "divided over ranks"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in BAD if "divided" not in name])
def test_bad_input_ends_with_status_2_and_a_reason(recipe, capsys, name):
    stages, words = BAD[name]
    path = recipe(stages)
    assert main(["run", path, "--store", "one"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_weights_divided_over_ranks_are_refused(recipe):
    stages, words = BAD["weights divided over ranks"]
    path = recipe(stages)
    run(path, "--until", "base")
    done = subprocess.run(
        [sys.executable, "-m", "cairn", "run", path, "--store", "one", "--ranks", "2"], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_told(recipe, monkeypatch, capsys, value):
    from cairn.score import registry
    from cairn.score.metric import Metric

    path = recipe(stage())
    monkeypatch.setitem(registry.metrics(), "exact", Metric("", lambda expected, answer, meta: value))
    assert main(["run", path, "--store", "one"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"the reward of an answer is {value}" in told
    assert "a, row " in told


def test_rewards_that_are_the_same_at_first_are_a_warning(recipe, monkeypatch, capsys):
    """From the third round on they are none any more."""
    from cairn.score import registry
    from cairn.score.metric import Metric

    count = 0

    def late(expected, answer, meta):
        nonlocal count
        count += 1
        return float(count > 2 * 48 and count % 2)

    path = recipe(stage(steps=4))
    monkeypatch.setitem(registry.metrics(), "exact", Metric("", late))
    run(path)
    told = " ".join(capsys.readouterr().err.split())
    assert "in 1 rounds of 8 prompts all 6 answers to each got the same reward, such as 0: there is nothing to learn" in told
    assert "in 2 rounds" in told
    assert "in 3 rounds" not in told


def test_stale_weights_would_stop_the_run(recipe, monkeypatch, capsys):
    from cairn.generate.fast import FastRunner

    path = recipe(stage())
    monkeypatch.setattr(FastRunner, "renew", lambda self: None)
    assert main(["run", path, "--store", "one"]) == 1
    assert "checksum" in capsys.readouterr().err
