"""Merging through the command line: checkpoints of a run, models about a base, what does not fit, and an adapter whose merge is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.resolve import resolve_artifact

TRAIN = """\
  {name}:
    kind: train
    {start}
    data: [{{name: a, path: talk.jsonl}}]
    steps: 6
    sequence_length: 256
    batch_sequences: 2
    checkpoints: {{every: 2}}
"""
SHAPE = "{hidden_size: 32, layers: 2, heads: 2, intermediate_size: 48, context: 256}"
HEAD = """\
recipe: small
seed: 1
stages:
  tok: {kind: tokenizer, vocab_size: 300, format: k2, data: [{name: a, path: talk.jsonl}]}
  tok2: {kind: tokenizer, vocab_size: 300, format: k2, data: [{name: a, path: other.jsonl}]}
"""
STAGES = [
    TRAIN.format(name="base", start=f"tokenizer: tok\n    model: {SHAPE}"),
    TRAIN.format(name="one", start="init: base"),
    TRAIN.format(name="other", start="init: base\n    optimizer: {lr: 0.01}"),
    TRAIN.format(name="vicuna", start="init: base\n    format: vicuna"),
    TRAIN.format(name="foreign", start=f"tokenizer: tok2\n    model: {SHAPE}"),
    TRAIN.format(name="light", start="init: base\n    adapter: {rank: 4, merge: false}"),
    "  average: {kind: merge, method: linear, models: [{model: one, step: 2}, {model: one, step: 4}, {model: one, weight: 2}]}\n",
    "  mixed: {kind: merge, method: dare_ties, density: 0.5, models: [{model: one}, {model: other}], base: {model: base}}\n",
    "  scores: {kind: evaluate, model: mixed, likelihood: [{name: held-out, path: talk.jsonl, limit: 5}]}\n",
    TRAIN.format(name="further", start="init: mixed"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("merge")
    rows = [{"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"yes {i}"}]} for i in range(40)]
    for name, word in (("talk", "yes"), ("other", "nobody knows")):
        lines = (json.dumps(row).replace("yes", word) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    recipe = folder / "r.yaml"
    recipe.write_text((HEAD + "".join(STAGES)).replace("path: ", f"path: {folder}/"))
    assert main(["run", str(recipe), "--store", str(folder / "store")]) == 0
    return Store(folder / "store")


def artifact(store: Store, name: str) -> Artifact:
    return resolve_artifact(f"small/{name}", store)


def cairn(capsys: Any, *words: Any, status: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main([str(word) for word in words]) == status, capsys.readouterr().err
    told = capsys.readouterr()
    return told.out, told.err


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_checkpoints_of_one_run_are_averaged(made: Store) -> None:
    one = artifact(made, "one")
    parts = [load_file(one.path(f"checkpoints/step-00000{step}/weights.safetensors")) for step in (2, 4)]
    last, found = weights(one.path("model")), weights(artifact(made, "average").path("model"))
    assert set(found) == set(last)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name] + 2 * last[name]) / 4)
    assert not torch.equal(found["model.norm.weight"], last["model.norm.weight"])


def test_a_merged_model_is_evaluated_trained_on_and_verified_as_any_other(made: Store, capsys: Any) -> None:
    mixed, one = artifact(made, "mixed"), artifact(made, "one")
    for name in ("tokenizer.json", "chat_format.yaml", "generation_config.json"):
        assert mixed.path(f"model/{name}").read_bytes() == one.path(f"model/{name}").read_bytes()
    assert artifact(made, "scores").record.metrics["scores"]["held-out perplexity"]["value"] > 1
    assert artifact(made, "further").path("model/config.json").is_file()
    cairn(capsys, "verify", "small/mixed", "--replay", "--store", made.root)


def test_the_command_gives_what_the_stage_gives(made: Store, tmp_path: Path, capsys: Any) -> None:
    place = ("--store", made.root)
    told = ("--method", "dare_ties", "--density", "0.5", "--base", "small/base", "--seed", "1", "--json")
    found = json.loads(cairn(capsys, "merge", "small/one", "small/other", tmp_path / "out", *told, *place)[0])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == artifact(made, "mixed").path("model/model.safetensors").read_bytes()
    assert found["parameters"] == artifact(made, "mixed").record.metrics["parameters"]
    step = artifact(made, "one").path("checkpoints/step-000004")
    cairn(capsys, "merge", step, "small/one", tmp_path / "half", "--method", "linear", "--weight", "1", "--weight", "0", *place)
    torch.testing.assert_close(weights(tmp_path / "half"), load_file(step / "weights.safetensors"))
    out = cairn(capsys, "generate", tmp_path / "half", "--help", *place)[0]
    assert "generate" in out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["small/one", "small/foreign", "--method", "linear"], "the tokenizers are two"),
        (["small/one", "small/vicuna", "--method", "linear"], "two chat formats"),
        (["small/one", "small/light", "--method", "linear"], "this is an adapter"),
        (["small/one", "small/other", "--method", "ties"], "give the base"),
        (["small/one", "small/other", "--method", "ties", "--base", "small/foreign"], "the tokenizers are two"),
        (["small/one", "small/other", "--method", "average"], "method"),
        (["small/one", "small/other", "--method", "linear", "--weight", "1"], "2 models have 1 weight"),
        (["small/one", "small/other"], "2 models are given, and no method"),
        (["small/light", "--density", "0.5"], "--density is given, and no method"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(made: Store, tmp_path: Path, capsys: Any, words: list[str], what: str) -> None:
    refs, options = [w for w in words if w.startswith("small/")], words
    at = next((i for i, w in enumerate(options) if w.startswith("--")), len(options))
    refs, options = options[:at], options[at:]
    said = cairn(capsys, "merge", *refs, tmp_path / "out", *options, "--store", made.root, status=2)[1]
    assert what in said
    assert "do:" in said
    assert not list(tmp_path.iterdir())


def test_of_two_formats_one_can_be_chosen(made: Store, tmp_path: Path, capsys: Any) -> None:
    told = ("--method", "linear", "--format", "k2", "--store", made.root)
    cairn(capsys, "merge", "small/vicuna", "small/one", tmp_path / "out", *told)
    assert "name: k2" in (tmp_path / "out" / "chat_format.yaml").read_text()


def test_an_adapter_that_is_merged_wrongly_fails_loudly(made: Store, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from cairn.model import adapter

    place = ("--store", made.root)
    cairn(capsys, "merge", "small/light", tmp_path / "fine", *place)
    real = adapter.merged

    def wrong(adapted: Any) -> Any:
        model = real(adapted)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[0] += 0.01
        return model

    monkeypatch.setattr(adapter, "merged", wrong)
    said = cairn(capsys, "merge", "small/light", tmp_path / "out", *place, status=2)[1]
    assert "the merged model is not the adapter on its base: logits differ" in said
    assert [p.name for p in tmp_path.iterdir()] == ["fine"]


def test_a_recipe_is_told_before_anything_runs(made: Store, capsys: Any, tmp_path: Path) -> None:
    bad = "  bad: {kind: merge, method: ties, models: [{model: one}, {model: other}]}\n"
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + "".join(STAGES[:3]) + bad)
    assert "give the base" in cairn(capsys, "plan", path, "--store", made.root, status=2)[1]
