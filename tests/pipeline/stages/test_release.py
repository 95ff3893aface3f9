"""From a corpus to a release and back, through the stages `evaluate` and `card` and the verbs `eval` and `card`, on a tiny model."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cairn.cli.main import main
from cairn.errors import UserError
from cairn.ledger.digest import file_digest
from cairn.ledger.record import hash_outputs, outputs_digest, record_text
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.names import renamed
from cairn.pipeline.recipe import load_recipe
from cairn.pipeline.run import run_recipe
from cairn.pipeline.stages.evaluate import EvaluateConfig
from cairn.pipeline.verify import replay

RECIPE = """
recipe: tiny
seed: 3
stages:
  corpus: {kind: corpus, scale: 0.02}
  tokenizer:
    kind: tokenizer
    vocab_size: 600
    data: [{name: texts, stage: corpus, file: pretrain.jsonl, limit: 60}]
  base:
    kind: train
    objective: language_model
    tokenizer: tokenizer
    model: {hidden_size: 32, layers: 1, heads: 2, intermediate_size: 48}
    data: [{name: texts, stage: corpus, file: pretrain.jsonl}]
    steps: 4
    sequence_length: 128
    batch_sequences: 2
  chat:
    kind: train
    init: base
    data: [{name: facts, stage: corpus, file: train/facts.jsonl}]
    steps: 4
    sequence_length: 128
    batch_sequences: 2
  scores:
    kind: evaluate
    model: chat
    data: corpus
    suites:
      - name: quick
        data: [test/facts.jsonl, test/arithmetic.jsonl]
        group_by: skill
        metrics: {arithmetic: number}
        max_new_tokens: 4
    likelihood: [{name: held-out, stage: corpus, file: test/facts.jsonl}]
  card: {kind: card, model: chat, evaluations: [scores], data: corpus, title: Tiny, license: mit, languages: [en]}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(RECIPE)
    made = Store(folder / "store")
    run_recipe(load_recipe(str(folder / "tiny.yaml"), []), made)
    return made


def artifact(store: Store, stage: str) -> Artifact:
    return Artifact(store.artifacts / store.named()["tiny"][stage])


def run(words: list[str], store: Store, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--store", str(store.root)]) == 0
    return capsys.readouterr().out


def test_evaluation_holds_a_number_for_each_skill_with_its_samples(store: Store) -> None:
    made = artifact(store, "scores")
    rows = json.loads(made.path("results.json").read_text())["rows"]
    assert [(r["suite"], r["metric"]) for r in rows] == [
        ("quick/facts", "exact"),
        ("quick/arithmetic", "number"),
        ("held-out", "perplexity"),
        ("held-out", "bits_per_byte"),
    ]
    for row in rows:
        assert file_digest(made.path(row["samples"])) == row["samples_sha256"]
    questions = artifact(store, "corpus").path("test/facts.jsonl").read_text().splitlines()
    assert rows[0]["n"] == len(questions)
    scores = made.record.metrics["scores"]
    assert scores["quick/facts exact"]["value"] == rows[0]["value"]
    assert 1 < scores["held-out perplexity"]["value"] < 600 * 1.5


@pytest.mark.parametrize("stage", ["scores", "card"])
def test_replay_gives_the_same_bytes(store: Store, stage: str) -> None:
    assert replay(artifact(store, stage), store).differs == []


def renaming(store: Store) -> dict[str, str]:
    """Another name for each stage of the tiny recipe, by key."""
    new = {"corpus": "source", "tokenizer": "pieces", "base": "start", "chat": "talk", "scores": "marks", "card": "sheet"}
    return {artifact(store, old).key: name for old, name in new.items()}


@pytest.mark.parametrize("stage", ["corpus", "tokenizer", "base", "scores"])
def test_a_stage_of_another_name_gives_the_same_bytes(store: Store, stage: str) -> None:
    made = artifact(store, stage)
    made.record = renamed(made.record, renaming(store)).model_copy(update={"recipe": "other", "command": "cairn run other.yaml"})
    assert made.record.name != stage
    assert replay(made, store).differs == []


def test_a_card_shows_the_names_of_its_own_recipe(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = RECIPE.replace("recipe: tiny", "recipe: other")
    for old, new in (("base", "start"), ("chat", "talk"), ("scores", "marks")):
        text = re.sub(rf"\b{old}\b", new, text)
    (tmp_path / "other.yaml").write_text(text)
    ran = run_recipe(load_recipe(str(tmp_path / "other.yaml")), store).stages
    assert [s.name for s in ran if s.status == "ran"] == ["card"], "all else is shared"
    card = ran[-1].artifact
    assert card.key != artifact(store, "card").key
    published = card.path("README.md").read_text() + card.path("lineage.json").read_text()
    assert "`start`" in published
    assert "cairn chat other/talk" in published
    assert not re.search(r"\bbase\b[`\"]|`scores`|: \"scores\"", published)
    assert str(tmp_path) not in published
    assert card.path("evaluations/marks/results.json").is_file()
    assert replay(card, store).differs == []
    assert run(["card", "other/card"], store, capsys) == card.path("README.md").read_text()
    # A store that never saw other names gives the same bytes.
    moved = Store(tmp_path / "fresh")
    for stage in ran[:-1]:
        copy = moved.artifacts / stage.artifact.key
        shutil.copytree(stage.artifact.folder, copy)
        names = {s.artifact.key: s.name for s in ran}
        (copy / "record.json").write_text(record_text(renamed(stage.artifact.record, names).sealed()))
    again = run_recipe(load_recipe(str(tmp_path / "other.yaml")), moved).stages[-1]
    assert (again.status, again.artifact.record.digest) == ("ran", card.record.digest)


def test_two_evaluations_of_one_name_keep_their_evidence(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = artifact(store, "scores")
    mine = Store(tmp_path / "store")
    shutil.copytree(store.artifacts, mine.artifacts)
    second = mine.artifacts / ("f" * 64)
    shutil.copytree(one.folder, second)
    changed = json.loads((second / "results.json").read_text())
    (second / "samples" / "quick.jsonl").write_text("{}\n")
    for row in changed["rows"]:
        row["samples_sha256"] = file_digest(second / row["samples"])
    (second / "results.json").write_text(json.dumps(changed))
    outputs, logs = hash_outputs(second)
    fields = {"key": "f" * 64, "outputs": outputs, "logs": logs, "digest": outputs_digest(outputs)}
    (second / "record.json").write_text(record_text(one.record.model_copy(update=fields).sealed()))
    # What is wrong with artifacts that have nothing to do with the model does not matter.
    (mine.artifacts / ("e" * 64)).mkdir()
    for stage, key in store.named()["tiny"].items():
        mine.name("tiny", stage, key)
    run(["card", "tiny/chat", "--out", str(tmp_path / "out")], mine, capsys)
    named = re.findall(r"\(evaluations/([^)]*quick\.jsonl)\) \| `(\w+)`", (tmp_path / "out" / "README.md").read_text())
    assert len(named) == 2
    for path, digest in named:
        assert file_digest(tmp_path / "out" / "evaluations" / path) == digest


def test_a_draft_that_a_kill_left_does_not_reach_the_outputs(store: Store, tmp_path: Path) -> None:
    from cairn.pipeline.drafts import empty

    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / ".x.tmp").write_text("half")
    (tmp_path / "README.md").write_text("half")
    empty(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_release_loads_as_it_is_and_gives_the_same_logits(store: Store) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cairn.evaluate.subject import load_subject

    release = artifact(store, "card").folder
    ours = load_subject(artifact(store, "chat").path("model"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(release), AutoTokenizer.from_pretrained(release)
    messages = [{"role": "user", "content": "What is the capital of Norway?"}, {"role": "assistant", "content": "Oslo."}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids == list(ours.renderer.render(messages).ids)
    with torch.inference_mode():
        assert torch.equal(model(torch.tensor([ids])).logits, ours.model(torch.tensor([ids])).logits)


def test_the_snippet_of_the_card_runs(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    release = artifact(store, "card").folder
    snippet = (release / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(release)
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102 - the very code that readers are told to run
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1], "the model wrote something"
    assert capsys.readouterr().out


def test_summaries(store: Store) -> None:
    from rich.console import Console

    from cairn.pipeline.stage import find_stage

    for stage in ("scores", "card"):
        console = Console(width=200, record=True, file=io.StringIO())
        made = artifact(store, stage)
        console.print(find_stage(made.record.kind).summarize(made))
        text = console.export_text()
        assert "quick/arithmetic" in text
        assert text.count("assistant  ") == 2, "one dialogue of each skill that the suite has"
        if stage == "card":
            assert "README.md" in text
            assert "cairn chat tiny/chat" in text


def test_eval_verb_agrees_with_the_stage(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    suite = tmp_path / "quick.yaml"
    suite.write_text("name: quick\ndata: [test/facts.jsonl]\ngroup_by: skill\nmax_new_tokens: 4\n")
    found = json.loads(run(["eval", "tiny/chat", "tiny/base", "--suite", str(suite), "--json"], store, capsys))
    assert found["models"] == ["tiny/chat", "tiny/base"]
    (row,) = found["rows"]
    recorded = json.loads(artifact(store, "scores").path("results.json").read_text())["rows"][0]
    assert (row["suite"], row["n"], row["metric"]) == ("quick/facts", recorded["n"], "exact")
    assert row["values"][0] == {key: recorded[key] for key in ("value", "low", "high")}
    assert set(row) == {"suite", "metric", "n", "values"}


def test_eval_verb_on_files_of_ones_own(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"text": f"The capital of Norway is Oslo {i}."}) + "\n" for i in range(5)))
    found = json.loads(run(["eval", "tiny/base", "--suite", "likelihood", "--data", str(file), "--limit", "3", "--json"], store, capsys))
    assert [(r["suite"], r["metric"], r["n"]) for r in found["rows"]] == [("mine", "perplexity", 3), ("mine", "bits_per_byte", 3)]
    suite = tmp_path / "two.yaml"
    suite.write_text("name: two\ndata: [test/lists.jsonl, test/korean.jsonl]\ngroup_by: skill\nmax_new_tokens: 3\n")
    options = ["--suite", str(suite), "--data", "tiny/corpus", "--limit", "1", "--out", str(tmp_path / "kept")]
    table = run(["eval", "tiny/base", "tiny/chat", *options], store, capsys)
    assert "against tiny/base" in table
    assert "two/korean" in table
    assert len((tmp_path / "kept" / "1" / "samples" / "two.jsonl").read_text().splitlines()) == 2


def test_eval_verb_shows_examples_and_keeps_them_as_evidence(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    questions = [json.loads(line) for line in artifact(store, "corpus").path("test/lists.jsonl").read_text().splitlines()]
    shown, asked = questions[1], questions[0]
    suite = tmp_path / "few.yaml"
    text = f"data: [test/lists.jsonl]\nfew_shot: [\"{shown['id']}\"]\nlimit: 1\nmax_new_tokens: 3\n"
    suite.write_text("name: few\nprompt: \"Q: {question}\"\n" + text)
    table = run(["eval", "tiny/chat", "--suite", str(suite), "--markdown", "--out", str(tmp_path / "kept")], store, capsys)
    assert table.startswith("| Suite | Metric | n | tiny/chat |\n")
    (sample,) = (json.loads(line) for line in (tmp_path / "kept" / "0" / "samples" / "few.jsonl").read_text().splitlines())
    assert (sample["id"], sample["few_shot"]) == (asked["id"], [shown["id"]])
    places = [sample["prompt"].index(text) for text in (f"Q: {shown['messages'][0]['content']}", f"Q: {asked['messages'][0]['content']}")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny/chat", "--suite", "peble"], "did you mean 'pebble'"),
        (["tiny/chot", "--suite", "pebble"], "tiny/chat"),
        (["tiny/chat", "--suite", "likelihood"], "--data"),
        (["tiny/chat", "--suite", "pebble", "--data", "tiny/tokenizer"], "test/functions.jsonl"),
    ],
)
def test_eval_verb_tells_mistakes(store: Store, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["eval", *words, "--store", str(store.root)]) == 2
    assert message in capsys.readouterr().err


def test_card_verb_writes_the_card_again(store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = artifact(store, "card")
    assert run(["card", "tiny/card"], store, capsys) == made.path("README.md").read_text()
    run(["card", "tiny/card", "--out", str(tmp_path / "again")], store, capsys)
    for path, output in made.record.outputs.items():
        assert file_digest(tmp_path / "again" / path) == output.sha256, path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again"]


def test_card_verb_on_a_model_finds_its_evaluations(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    card = run(["card", "tiny/chat"], store, capsys)
    assert "# tiny-chat" in card
    assert "quick/arithmetic" in card


@pytest.mark.parametrize("words", [["tiny/corpus"], ["tiny/card", "--out", "."], ["tiny/tokenizer", "--out", "x/y"]])
def test_card_verb_tells_mistakes(
    store: Store, capsys: pytest.CaptureFixture[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["card", *words, "--store", str(store.root)]) == 2
    assert capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "m"}, "nothing is measured"),
        ({"model": "m", "suites": ["pebble"]}, "need `data`"),
        ({"model": "m", "data": "d", "suites": ["mine.yaml"]}, "built-in name"),
        ({"model": "m", "data": "d", "suites": [{"name": "x"}]}, "names no data files"),
        ({"model": "m", "data": "d", "suites": ["pebble", "pebble"]}, "one name"),
    ],
)
def test_mistakes_of_a_recipe_are_told(config: dict[str, Any], message: str) -> None:
    from cairn.config import build

    with pytest.raises(UserError, match=message):
        build(EvaluateConfig, config, where="recipe")


def test_an_unknown_suite_in_a_recipe_is_told() -> None:
    from cairn.config import build

    with pytest.raises(UserError, match="did you mean 'pebble'"):
        build(EvaluateConfig, {"model": "m", "data": "d", "suites": ["peble"]}, where="recipe")
