"""Classes of data through the command line: a label in the prompt and a weight in the loss for each source (C-RLFT)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cairn.cli.main import main
from cairn.data.sources import Source
from cairn.generate.load import load_chat
from cairn.generate.sampling import Sampling
from cairn.ledger.store import Store
from cairn.pipeline.resolve import resolve_artifact
from cairn.train.loop import read_metrics

RECIPE = """\
recipe: small
seed: 1
stages:
  tok: {{kind: tokenizer, vocab_size: 300, format: k2_attributes, data: [{{name: a, path: expert.jsonl}}, {{name: b, path: other.jsonl}}]}}
  chat:
    kind: train
    objective: {objective}
    format: k2_attributes
    attributes: {{class: {{default: 1, maximum: 1}}}}
    tokenizer: tok
    model: {{hidden_size: 32, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 64, context: 128}}
    data:
      - {{name: expert, path: expert.jsonl}}
      - {{name: other, path: other.jsonl, attributes: {{class: 0}}, loss_weight: {weight}}}
    steps: {steps}
    sequence_length: 64
    batch_sequences: 8
    optimizer: {{kind: adamw, lr: 0.01}}
"""


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources that answer the same questions differently."""
    for name, answer in (("expert", "yes"), ("other", "no")):
        talk = [{"messages": [{"role": "user", "content": f"Ask {i}"}, {"role": "assistant", "content": answer}]} for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    monkeypatch.chdir(tmp_path)


def run(weight: float = 0.1, steps: int = 60, objective: str = "supervised") -> int:
    Path("r.yaml").write_text(RECIPE.format(weight=weight, steps=steps, objective=objective))
    return main(["run", "r.yaml", "--store", "one"])


def folder() -> Path:
    return resolve_artifact("small/chat", Store(Path("one"))).path("model")


def test_the_class_in_the_prompt_decides_and_the_better_one_is_the_default() -> None:
    assert run(weight=0.5, steps=200) == 0
    loaded = load_chat(folder())
    said = {}
    for attributes in ({}, {"class": 1}, {"class": 0}):
        request = loaded.session.request([{"role": "user", "content": "Ask 7"}], attributes=attributes, sampling=Sampling(max_new_tokens=5))
        said[str(attributes)] = loaded.session.message(loaded.engine.generate([request])[0].ids)["content"]
    assert said == {"{}": "yes", "{'class': 1}": "yes", "{'class': 0}": "no"}


def test_a_targets_weight_is_that_of_its_source() -> None:
    assert run(weight=0.25, steps=1) == 0
    [line] = read_metrics(resolve_artifact("small/chat", Store(Path("one"))).path("metrics.jsonl"))
    by_source = line["sources"]
    counts = {"expert": 1.0, "other": 0.25}
    sums = {name: (counts[name] * one["supervised_tokens"], one["loss"]) for name, one in by_source.items()}
    assert len(sums) == 2
    expected = sum(count * loss for count, loss in sums.values()) / sum(count for count, _ in sums.values())
    assert line["loss"] == pytest.approx(expected, rel=1e-5)


def test_rows_keep_their_own_class(tmp_path: Path) -> None:
    talk = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    talk[0]["attributes"] = {"class": 1}
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    assert run(steps=1) == 0
    read = list(Source(name="other", path="other.jsonl", attributes={"class": 0}).read(tmp_path / "other.jsonl"))
    assert [row["attributes"]["class"] for row in read] == [1] + [0] * 39


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "preference"}, "only the objectives supervised and language_model know"),
        ({"weight": 0}, "greater than 0"),
        ({"weight": ".nan"}, "finite"),
    ],
)
def test_what_cannot_be_meant_is_told(settings: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(**settings) == 2  # type: ignore[arg-type]
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("old", "new", "words"), [
    ("{class: 0}", "{clas: 0}", "the source 'other': unknown attribute 'clas'"),
    ("{class: 0}", "{class: 2}", "the source 'other': the attribute 'class' is 2"),
])  # fmt: skip
def test_a_sources_class_is_looked_at_in_the_recipe(old: str, new: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At a row, which does not hold it, nobody would find it; and it would cost the reading of all rows before."""
    Path("r.yaml").write_text(RECIPE.format(weight=0.1, steps=1, objective="supervised").replace(old, new))
    assert main(["plan", "r.yaml", "--store", "one"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert words in told
    assert "r.yaml, line" in told
    assert "did you mean 'class'?" in told or "from 0 to 1 (default 1)" in told
