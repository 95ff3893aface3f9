"""Attributes through the command line: a predictor from labelled rows, rows labelled by it, and a model tuned on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cairn.chat.format import load_format
from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.resolve import resolve_artifact
from cairn.pipeline.stages.label import agreement
from cairn.train.loop import read_metrics

SCHEMA = "{length: {default: 2}, mood: {default: 5, minimum: 1, maximum: 9}}"
HEAD = f"""\
recipe: small
seed: 1
stages:
  tok: {{kind: tokenizer, vocab_size: 300, format: k2, data: [{{name: a, path: plain.jsonl}}]}}
  base:
    kind: train
    tokenizer: tok
    model: {{hidden_size: 32, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 64, context: 128}}
    data: [{{name: a, path: plain.jsonl}}]
    steps: 20
    sequence_length: 96
    batch_sequences: 4
  labels:
    kind: label
    init: base
    attributes: &own {SCHEMA}
    data: [{{name: rated, path: rated.jsonl}}]
    label: [{{name: plain, path: plain.jsonl}}, {{name: rated, path: rated.jsonl}}]
    holdout: 0.3
    steps: 120
    sequence_length: 96
    batch_sequences: 4
    optimizer: {{kind: adamw, lr: 0.01}}
"""
TUNED = """\
  tuned:
    kind: train
    init: base
    format: k2_attributes
    attributes: *own
    data:
      - {name: plain, stage: labels, file: labelled/plain.jsonl, language: en}
      - {name: texts, path: texts.jsonl, language: ja}
    labelled: [plain]
    shares: {text: 0.25}
    steps: 4
    sequence_length: 96
    batch_sequences: 4
"""
AGAIN = """\
  again: {kind: label, predictor: labels, attributes: *own, data: [{name: rated, path: rated.jsonl}], sequence_length: 96}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """recipe(stages) writes the recipe and its rows; an answer's words show its length and its mood, which only half of the rated have."""
    draw = random.Random(0)
    rated, plain = [], []
    for i in range(160):
        length, mood = draw.randint(0, 4), draw.choice([1, 9])
        answer = {"role": "assistant", "content": " ".join(["yes" if mood == 9 else "no"] * (length + 1))}
        question = {"role": "user", "content": f"Say {draw.randint(0, 9999)}"}
        values = {"length": length} | ({"mood": mood} if i % 2 else {})
        if i < 120:
            rated.append({"messages": [question, answer], "attributes": values, "id": f"r{i}", "language": "en"})
        else:
            plain.append({"messages": [question, answer, {**question, "content": "More"}, answer], "id": f"p{i}", "meta": values})
    texts = [{"text": "Once upon a time there was nothing at all. " * 2}] * 5
    for name, rows in (("rated", rated), ("plain", plain), ("texts", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    def write(*stages: str, head: str = HEAD) -> str:
        (tmp_path / "r.yaml").write_text(head + "".join(stages))
        return "r.yaml"

    return write


def artifact(name: str) -> Artifact:
    return resolve_artifact(f"small/{name}", Store(Path("one")))


def run(path: str, status: int = 0) -> None:
    assert main(["run", path, "--store", "one"]) == status


def rows(place: Path) -> list[dict]:
    return [json.loads(line) for line in place.read_text().splitlines()]


def test_from_ratings_to_a_model_that_is_tuned_on_labels(recipe, capsys):
    run(recipe(TUNED, AGAIN))
    made = artifact("labels")
    found = made.record.metrics["agreement"]
    assert list(found) == ["length", "mood"]
    for one in found.values():
        assert one["n"] >= 10
        assert one["spearman"] > 0.7
        assert one["distance"] < one["of_mean"] / 2
    held = rows(made.path("heldout.jsonl"))
    assert found["length"]["n"] == len(held)
    assert found["mood"]["n"] == sum("mood" in line["labels"] for line in held) < len(held)
    assert made.record.metrics["learnt_answers"] + len(held) == 120
    # What was rated stays as it was; what was not has a whole number in its range.
    for before, after in zip(rows(Path("rated.jsonl")), rows(made.path("labelled/rated.jsonl")), strict=True):
        values = after["messages"][0]["attributes"]
        assert values == {**values, **before["attributes"]}
        assert 1 <= values["mood"] <= 9
    guessed = [(turn["attributes"], row["meta"]) for row in rows(made.path("labelled/plain.jsonl")) for turn in row["messages"][::2]]
    assert len(guessed) == 80
    assert sum(abs(values["length"] - meta["length"]) <= 1 for values, meta in guessed) > 60
    assert all(type(value) is int and 0 <= values["length"] <= 4 for values, _ in guessed for value in values.values())
    # Anybody can load the predictor, and it gives these numbers.
    theirs, tokenizer = (kind.from_pretrained(made.path("model")) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    row = next(row for row in rows(Path("rated.jsonl")) if row["id"] == held[0]["id"].partition(":")[0])
    ids = tokenizer.apply_chat_template(row["messages"], return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        numbers = theirs.eval()(ids).logits[0].tolist()
    assert dict(zip(theirs.config.label2id, numbers, strict=True)) == pytest.approx(held[0]["predicted"], abs=1e-4)
    # A predictor that is used again agrees with all labels, and trains nothing.
    again = artifact("again")
    assert again.record.metrics["agreement"]["length"]["n"] == 120
    assert not again.path("model").exists()
    # The tuned model carries the schema, its defaults stand in the template, and the mix reached its share of text.
    folder = artifact("tuned").path("model")
    assert {name: one.default for name, one in load_format(str(folder)).attributes.items()} == {"length": 2, "mood": 5}
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|beginofuser|>Hi [ATTR] length: 2 mood: 5 [/ATTR]"
    mix = json.loads(artifact("tuned").path("mix.json").read_text())
    drawn = {"plain": 0, "texts": 0}
    for line in read_metrics(artifact("tuned").path("metrics.jsonl")):
        for name, one in line["sources"].items():
            drawn[name] += one["tokens"]
    assert drawn["texts"] / sum(drawn.values()) == pytest.approx(0.25, abs=0.1)
    assert mix["weights"]["texts"] != 1.0
    assert artifact("tuned").record.metrics["shares"] == {"text": drawn["texts"] / sum(drawn.values())}
    capsys.readouterr()
    assert main(["verify", "small/labels", "--replay", "--store", "one"]) == 0


def bad(recipe, capsys, *stages, head=HEAD):
    run(recipe(*stages, head=head), status=2)
    return " ".join(capsys.readouterr().err.split())


def change(name, edit):
    place = Path(f"{name}.jsonl")
    found = rows(place)
    edit(found[3])
    place.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.mark.parametrize(("edit", "told"), [
    (lambda row: row["attributes"].update(length=7), ["'length' is 7", "row r3", "from 0 to 4"]),
    (lambda row: row["attributes"].update(lenght=1), ["unknown attribute 'lenght'", "row r3", "did you mean 'length'?"]),
    (lambda row: row.pop("attributes"), ["the row has no attribute", "row r3", "helpsteer"]),
])  # fmt: skip
def test_a_bad_rating_is_told(recipe, capsys, edit, told):
    recipe()
    change("rated", edit)
    found = bad(recipe, capsys)
    assert all(text in found for text in told), found


def test_an_attribute_that_nobody_rated_is_told(recipe, capsys):
    found = bad(recipe, capsys, head=HEAD.replace("{length:", "{charm: {default: 0}, length:"))
    assert "no row to learn from has the attribute 'charm'" in found


def test_a_labelled_source_without_labels_is_refused(recipe, capsys):
    found = bad(recipe, capsys, TUNED.replace("stage: labels, file: labelled/plain.jsonl", "path: plain.jsonl"))
    assert "the attribute 'length' is missing" in found
    assert "messages[0].attributes" in found


@pytest.mark.parametrize(("old", "new", "told"), [
    ("k2_attributes", "k2", "'k2' has no place for attributes"),
    ("    format: k2_attributes\n", "", "attributes need a format"),
    ("labelled: [plain]", "labelled: [plan]", "did you mean 'plain'?"),
    ("    attributes: *own\n", "    attributes: {length: {default: 9}}\n", "default (9) must lie between"),
    ("shares: {text: 0.25}", "shares: {dialogues: {ko: 0.1}}", "no source of dialogues is of the language 'ko'"),
    ("    init: base\n", "    init: base\n    objective: attributes\n", "stage of kind label"),
])  # fmt: skip
def test_what_a_training_cannot_use_is_told(recipe, capsys, old, new, told):
    assert old in TUNED
    stage = TUNED.replace(old, new).replace("stage: labels, file: labelled/plain.jsonl", "path: rated.jsonl")
    # Without the labelling, which has nothing to do with these.
    head = HEAD[: HEAD.index("  labels:")]
    if "*own" in stage:
        stage = stage.replace("*own", SCHEMA)
    if "labelled: [plain]" in stage:
        stage = stage.replace("    labelled: [plain]\n", "")
    assert told in bad(recipe, capsys, stage, head=head)


@pytest.mark.parametrize(("old", "new", "told"), [
    ("    init: base\n    attributes", "    init: base\n    predictor: base\n    attributes",
     "exactly one of init, checkpoint and predictor"),
    ("    data: [{name: rated, path: rated.jsonl}]\n", "", "a predictor needs labelled rows"),
    ("holdout: 0.3", "holdout: 0", "greater than 0"),
    ("steps: 120", "steps: 9\n    objective: reward", "objective attributes"),
    ("    steps: 120\n    sequence_length: 96", "    steps: 9\n    sequence_length: 129", "longer than the model's 128 positions"),
])  # fmt: skip
def test_a_label_stage_that_cannot_be_is_told(recipe, capsys, old, new, told):
    assert old in HEAD
    assert told in bad(recipe, capsys, head=HEAD.replace(old, new))


def test_agreement():
    from cairn.chat.format import Attribute

    nan = float("nan")
    found = agreement([0, 2, nan, 4], [0.4, 1.4, 9.0, 3.6], Attribute(default=0))
    distances = {"distance": pytest.approx(1.4 / 3), "of_mean": pytest.approx(4 / 3)}
    assert found == {"n": 3, **distances, "exact": pytest.approx(2 / 3), "spearman": 1}
    assert agreement([nan], [1.0], Attribute(default=0)) == {"n": 0}
    assert agreement([1, 1], [1.0, 2.0], Attribute(default=0))["spearman"] is None
