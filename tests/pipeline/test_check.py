"""What can be known before the first stage runs is told before it runs, with the recipe's line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.cli.main import main
from cairn.errors import UserError
from cairn.ledger.progress import Silent
from cairn.ledger.store import Store
from cairn.pipeline import check
from cairn.pipeline.plan import make_plan
from cairn.pipeline.recipe import load_recipe
from cairn.pipeline.run import run_recipe

Write = Callable[..., str]

WHOLE = """
  corpus: {kind: corpus, scale: 0.01, train: {lists: 0}}
  rows: {kind: data, holdout: 0, sources: [{name: facts, stage: corpus, file: train/facts.jsonl}]}
  tokenizer:
    kind: tokenizer
    format: k2
    data: [{name: texts, stage: corpus, file: pretrain.jsonl, reader: auto}]
  base:
    kind: train
    objective: language_model
    tokenizer: tokenizer
    model: {hidden_size: 32, layers: 1, heads: 2, intermediate_size: 48}
    data: [{name: texts, stage: corpus, file: pretrain.jsonl}]
    steps: 4
  chat:
    kind: train
    init: base
    format: k2
    data: [{name: facts, stage: rows, file: facts.train.jsonl, encoding: utf-8}]
    steps: 4
  scores:
    kind: evaluate
    model: chat
    data: corpus
    suites: [pebble]
    likelihood: [{name: held-out, stage: corpus, file: test/facts.jsonl}]
  card:
    kind: card
    model: chat
    evaluations: [scores]
"""


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cairn.model.speed.gemm_rate", lambda *_: 100.0)


def test_a_recipe_without_mistakes_passes(write_recipe: Write, store: Store) -> None:
    assert len(make_plan(load_recipe(write_recipe(WHOLE)), store)) == 7


@pytest.mark.parametrize(
    ("right", "wrong", "what", "remedy"),
    [
        ("objective: language_model", "objective: langauge_model", "unknown objective 'langauge_model'", "did you mean 'language_model'?"),
        ("    format: k2\n    data: [{name: texts", "    format: k3\n    data: [{name: texts", "unknown chat format 'k3'", "known: "),
        ("    init: base\n    format: k2", "    init: base\n    format: /some/folder", "unknown chat format", "known: "),
        ("reader: auto", "reader: atuo", "no reader is named 'atuo'", "did you mean 'auto'?"),
        ("encoding: utf-8", "encoding: utf-9", "no text encoding is named 'utf-9'", "'utf8'"),
        ("encoding: utf-8", "encoding: rot13", "no text encoding is named 'rot13'", ""),
        ("suites: [pebble]", "suites: [peble]", "no suite is named 'peble'", "did you mean 'pebble'"),
        ("suites: [pebble]", "suites: [mine.yaml]", "its content would not be in the key", "written out"),
        (
            "suites: [pebble]",
            "suites: [{name: x, data: [test/fact.jsonl]}]",
            "'corpus' (kind corpus) writes no file 'test/fact.jsonl'",
            "facts",
        ),
        ("suites: [pebble]", "suites: [{name: x, data: [x], metric: exat}]", "no metric is named 'exat'", "did you mean 'exact'?"),
        ("file: facts.train.jsonl", "file: fact.train.jsonl", "writes no file 'fact.train.jsonl'", "did you mean 'facts.train.jsonl'"),
        ("file: facts.train.jsonl", "file: facts.heldout.jsonl", "writes no file 'facts.heldout.jsonl'", "facts.train.jsonl"),
        ("file: train/facts.jsonl", "file: train/lists.jsonl", "writes no file 'train/lists.jsonl'", "train/facts.jsonl"),
        ("    init: base", "    init: tokenizer", "'tokenizer' (kind tokenizer) writes no file 'model/config.json'", ""),
        ("    tokenizer: tokenizer", "    tokenizer: corpus", "'corpus' (kind corpus) writes no file 'tokenizer.json'", ""),
        ("evaluations: [scores]", "evaluations: [base]", "'base' (kind train) writes no file 'results.json'", ""),
        ("kind: card\n    model: chat", "kind: card\n    model: corpus", "'corpus' (kind corpus) writes no file 'model/config.json'", ""),
    ],
)
def test_a_mistake_is_told_with_its_line(write_recipe: Write, store: Store, right: str, wrong: str, what: str, remedy: str) -> None:
    assert WHOLE.count(right) == 1
    path = write_recipe(WHOLE.replace(right, wrong))
    with pytest.raises(UserError) as caught:
        make_plan(load_recipe(path), store)
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    at = WHOLE.index(right) + next(i for i in range(len(right)) if right[i] != wrong[i])
    line = 4 + WHOLE[:at].count("\n")
    assert f"small.yaml, line {line}" in caught.value.where, caught.value.where


def test_an_adapter_alone_is_a_model_to_evaluate_and_none_to_release(write_recipe: Write, store: Store) -> None:
    recipe = load_recipe(write_recipe(WHOLE), ["chat.adapter={rank: 2, merge: false}"])
    with pytest.raises(UserError, match=r"'chat' \(kind train\) writes no file 'model/config.json'") as caught:
        make_plan(recipe, store)
    assert "small.yaml, line" in caught.value.where
    assert make_plan(recipe, store, until="scores")[-1].node.name == "scores"


def test_an_override_is_blamed_for_what_it_brought(write_recipe: Write, store: Store) -> None:
    with pytest.raises(UserError, match="writes no file") as caught:
        make_plan(load_recipe(write_recipe(WHOLE), ["chat.data.facts.file=x.jsonl"]), store)
    assert caught.value.where == "--set chat.data.facts.file=x.jsonl"


def test_a_finished_stage_is_asked_for_what_it_did_write(write_recipe: Write, store: Store) -> None:
    run_recipe(load_recipe(write_recipe("  corpus: {kind: corpus, scale: 0.01}\n")), store)
    more = "  corpus: {kind: corpus, scale: 0.01}\n  rows: {kind: data, sources: [{name: a, stage: corpus, file: train/fact.jsonl}]}\n"
    with pytest.raises(UserError, match="writes no file"):
        make_plan(load_recipe(write_recipe(more)), store)


LATER = """
  first: {{kind: lines}}
  rows:
    kind: data
    sources: [{{name: mine, path: {path}}}]
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": f"a{i}"}) + "\n" for i in range(30)))
    return path


def test_a_bad_row_is_told_before_any_stage_runs(write_recipe: Write, store: Store, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(LATER.format(path=rows))
    with open(rows, "a") as file:
        file.write('{"question": "q"}\n')
    assert main(["run", path, "--store", str(store.root)]) == 2
    assert f"{rows}, row 31" in capsys.readouterr().err
    assert store.keys() == []
    for override in ("rows.bad_rows=drop", "rows.sources.mine.limit=30"):
        assert main(["run", path, "--store", str(store.root), "--set", override]) == 0, "a row that is dropped or not read stops nothing"


def test_a_long_pass_over_rows_is_remembered(write_recipe: Write, store: Store, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(LATER.format(path=rows) + "  again: {kind: data, sources: [{name: other, path: " + str(rows) + "}]}\n")
    read, real = [], check._read
    monkeypatch.setattr(check, "_read", lambda source, *more: read.append(source.name) or real(source, *more) + 100)
    recipe = load_recipe(path)
    run_recipe(recipe, store, until="first")
    for _ in range(2):
        nodes = [step.node for step in make_plan(recipe, store)]
        check.check_rows(nodes, store, lambda title: Silent())
    assert read == ["mine"], "one file, read in one way, is read once"
