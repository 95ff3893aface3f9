"""From a whole model to a smaller one through the command line: pruned, taught by kept numbers and by a model beside it, replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.resolve import resolve_artifact
from cairn.train.loop import read_metrics

HEAD = """\
recipe: small
seed: 1
stages:
  tok: {kind: tokenizer, vocab_size: 300, format: k2, data: [{name: a, path: talk.jsonl}]}
  tok2: {kind: tokenizer, vocab_size: 310, format: k2, data: [{name: a, path: talk.jsonl}, {name: b, path: other.jsonl}]}
  whole:
    kind: train
    tokenizer: tok
    model: {family: qwen3, hidden_size: 32, layers: 4, heads: 4, kv_heads: 2, intermediate_size: 64, context: 128}
    data: [{name: a, path: talk.jsonl}]
    steps: 30
    sequence_length: 128
    batch_sequences: 4
"""
HEARD = "  heard: {kind: teacher, model: whole, data: [{name: a, path: talk.jsonl}], sequence_length: 128, top_k: 40}\n"
HALF = "  half: {kind: prune, model: whole, layers: 2, data: [{name: a, path: talk.jsonl}], sequence_length: 128}\n"
THIN = """\
  thin:
    kind: prune
    model: whole
    keep_layers: [0, 3]
    heads: 2
    intermediate_size: 32
    hidden_size: 16
    data: [{name: a, path: talk.jsonl}]
    sequence_length: 128
"""


def student(name: str, told: str, init: str = "half", data: str = "talk.jsonl", steps: int = 20) -> str:
    return f"""\
  {name}:
    kind: train
    objective: distillation
    distillation: {{{told}}}
    init: {init}
    data: [{{name: a, path: {data}}}]
    steps: {steps}
    sequence_length: 128
    batch_sequences: 4
    optimizer: {{kind: adamw, lr: 0.003}}
    checkpoints: {{every: 5}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipe(stages) writes the recipe and its rows."""
    for name, word in (("talk", "yes"), ("other", "nobody knows")):
        rows = [{"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{word} {i}"}]} for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    def write(*stages: str) -> str:
        (tmp_path / "r.yaml").write_text(HEAD + "".join(stages))
        return "r.yaml"

    return write


def cairn(capsys: Any, *words: Any, status: int = 0) -> str:
    capsys.readouterr()
    found = main([*map(str, words), "--store", "store"])
    told = capsys.readouterr()
    assert found == status, told.err
    return told.err if status else told.out


def artifact(name: str) -> Artifact:
    return resolve_artifact(f"small/{name}", Store(Path("store")))


def test_a_pruned_student_learns_from_kept_numbers_as_from_the_model(recipe: Any, capsys: Any) -> None:
    path = recipe(
        HEARD, HALF, student("kept", "teacher: heard"), student("online", "teacher: whole, loss: jsd, temperature: 2, hard: 0.1"),
        student("same", "teacher: whole", steps=3),
        student("own", "teacher: whole, on_policy: 0.5, max_new_tokens: 8, hidden: 0.5", steps=8),
        THIN, student("further", "teacher: heard", init="thin", steps=3),
        "  scores: {kind: evaluate, model: kept, likelihood: [{name: held-out, path: talk.jsonl, limit: 5}]}\n",
    )  # fmt: skip
    cairn(capsys, "run", path)
    half, whole = artifact("half"), artifact("whole")
    assert half.record.metrics["parameters"] < 0.7 * half.record.metrics["parameters_before"]
    assert len(half.record.metrics["layer_influence"]) == 4
    config = json.loads(half.path("model/config.json").read_text())
    assert (config["num_hidden_layers"], len(config["layer_types"])) == (2, 2)
    assert half.path("model/chat_format.yaml").read_bytes() == whole.path("model/chat_format.yaml").read_bytes()
    thin = json.loads(artifact("thin").path("model/config.json").read_text())
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [thin[key] for key in sizes] == [2, 16, 2, 1, 32]
    assert artifact("heard").record.metrics["probability_in_top_k"] > 0.5
    lines = {name: list(read_metrics(artifact(name).path("metrics.jsonl"))) for name in ("kept", "online", "same")}
    for name in ("kept", "online"):
        first, last = (lines[name][i]["objective"] for i in (0, -1))
        assert last["divergence"] < 0.7 * first["divergence"], name
    # The model beside the student says all that was kept of it; the rest of the vocabulary is one outcome there.
    for kept, same in zip(lines["kept"][:3], lines["same"], strict=True):
        assert 0.8 * same["loss"] < kept["loss"] <= same["loss"] * 1.001
    cairn(capsys, "verify", "small/kept", "--interval", "5:10")
    cairn(capsys, "verify", "small/own", "--interval", "0:5")
    for name in ("heard", "half", "online"):
        cairn(capsys, "verify", f"small/{name}", "--replay")


def test_a_plan_knows_a_pruned_model_before_and_after_it_is_made(recipe: Any, capsys: Any) -> None:
    """Its stage's key `model` names a stage, and no shape."""
    path = recipe(THIN, student("x", "teacher: whole", init="thin"))

    def parameters() -> int | None:
        (x,) = (step for step in json.loads(cairn(capsys, "plan", path, "--json"))["stages"] if step["name"] == "x")
        return x["parameters"]

    assert parameters() is None
    cairn(capsys, "run", path, "--until", "thin")
    assert parameters() == artifact("thin").record.metrics["parameters"]


@pytest.mark.parametrize(
    ("stages", "what", "when"),
    [
        ([student("x", "teacher: nobody", init="whole")], "nobody", "plan"),
        ([student("x", "loss: forward", init="whole")], "who is learnt from", "plan"),
        ([student("x", "teacher: tok", init="whole")], "writes no file", "plan"),
        ([HALF.replace("layers: 2", "layers: 9")], "the model has 4 layers", "run"),
        ([HALF.replace("layers: 2, ", "")], "nothing is cut", "plan"),
        ([HALF.replace("128", "129")], "longer than the model's 128 positions", "run"),
        ([HEARD.replace("128", "129")], "longer than the model's 128 positions", "run"),
        ([HEARD, student("x", "teacher: heard", init="whole", data="other.jsonl")], "on other documents", "run"),
        ([HEARD, student("x", "teacher: heard, targets: language_model", init="whole")], "on other documents", "run"),
        ([HEARD, student("x", "teacher: heard, on_policy: 0.5", init="whole")], "says nothing of answers that the student gives", "run"),
        ([HEARD, student("x", "teacher: heard, hidden: 1", init="whole")], "has no hidden states", "run"),
        ([THIN, student("x", "teacher: whole, hidden: 1", init="thin")], "have 16 numbers and the teacher's 32", "run"),
        ([HEARD, student("x", "teacher: heard, temperature: 2", init="whole")], "heard at temperature 1.0", "run"),
        (
            [student("x", "teacher: whole").replace("init: half", "tokenizer: tok2\n    model: {hidden_size: 16, layers: 1, heads: 2}")],
            "the tokenizers are two", "run",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(recipe: Any, capsys: Any, stages: list[str], what: str, when: str) -> None:
    said = cairn(capsys, when, recipe(*stages), status=2)
    assert what in said
    assert "do:" in said
