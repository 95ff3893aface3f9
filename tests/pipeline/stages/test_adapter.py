"""Adapters through the command line: each kind is trained, saved in peft's layout, merged, and its base stays what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cairn.cli.main import main
from cairn.ledger.digest import folder_digest
from cairn.ledger.store import Artifact, Store

LORA = "rank: 4, alpha: 16"
KINDS = {
    "lora": f"kind: lora, {LORA}, dropout: 0.1",
    "rslora": f"kind: rslora, {LORA}, targets: [q_proj, v_proj, down_proj]",
    "dora": f"kind: dora, {LORA}, train: [embeddings]",
    "ia3": "kind: ia3",
    "four": f"kind: lora, {LORA}, base: nf4",
    "kept": f"kind: lora, {LORA}, base: nf4, merge: false",
}
BF16 = {"lora", "dora", "four", "kept"}
HEAD = """
recipe: tiny
seed: 3
stages:
  corpus: {kind: corpus, scale: 0.02}
  tokenizer: {kind: tokenizer, vocab_size: 600, data: [{name: texts, stage: corpus, file: pretrain.jsonl, limit: 60}]}
  larger: {kind: tokenizer, vocab_size: 640, data: [{name: texts, stage: corpus, file: pretrain.jsonl, limit: 60}]}
  base:
    kind: train
    objective: language_model
    tokenizer: tokenizer
    model: {hidden_size: 32, layers: 2, heads: 2, intermediate_size: 48}
    data: [{name: texts, stage: corpus, file: pretrain.jsonl}]
    steps: 60
    sequence_length: 128
    batch_sequences: 2
"""
STAGE = """
  {name}:
    kind: train
    init: {init}
    adapter: {{{adapter}}}
    data: [{{name: facts, stage: corpus, file: train/facts.jsonl, limit: 8}}]
    steps: 16
    sequence_length: 128
    batch_sequences: 2
    precision: {precision}
    optimizer: {{kind: adamw, lr: {rate}}}
    checkpoints: {{every: 8}}
"""
SCORES = "  scores: {kind: evaluate, model: kept, likelihood: [{name: held-out, stage: corpus, file: test/facts.jsonl}]}\n"


def stage(name: str, adapter: str, init: str = "base", precision: str = "float32") -> str:
    rate = 0.4 if "ia3" in adapter else 0.02
    return STAGE.format(name=name, adapter=adapter, init=init, precision=precision, rate=rate)


def cairn(capsys: Any, *words: str, status: int = 0) -> tuple[str, str]:
    ended = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert ended == status, err
    return out, err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """A store in which every kind was trained, and the recipe."""
    folder = tmp_path_factory.mktemp("adapters")
    stages = [stage(name, adapter, precision="bfloat16" if name in BF16 else "float32") for name, adapter in KINDS.items()]
    recipe = folder / "tiny.yaml"
    recipe.write_text(HEAD + "".join(stages) + SCORES + stage("again", "kind: ia3", init="kept"))
    made = Store(folder / "store")
    assert main(["run", str(recipe), "--store", str(made.root)]) == 0
    return made, str(recipe)


def artifact(made: tuple[Store, str], name: str) -> Artifact:
    store = made[0]
    return Artifact(store.artifacts / store.named()["tiny"][name])


def losses(one: Artifact) -> list[float]:
    return [json.loads(line)["loss"] for line in one.path("metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", [*KINDS, "again"])
def test_the_loss_falls_and_only_the_adapter_is_trained(made: tuple[Store, str], name: str) -> None:
    one, base = artifact(made, name), artifact(made, "base")
    found, metrics = losses(one), one.record.metrics
    assert sum(found[-3:]) < 0.98 * sum(found[:3])
    weights = load_file(one.path("checkpoints/step-000008/weights.safetensors"))
    assert sum(t.numel() for t in weights.values()) == metrics["trained_parameters"] < 0.7 * base.record.metrics["parameters"]
    assert all(t.dtype == torch.float32 for t in weights.values())
    assert metrics["packed"]
    assert metrics["parameters"] - metrics["trained_parameters"] >= 0.9 * base.record.metrics["parameters"] - 600 * 32
    whole = [n for n in weights if "default" not in n.split(".")]
    assert whole == (["model.embed_tokens.weight"] if name == "dora" else [])
    assert base.differs() == []


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "ia3"])
def test_merged_is_the_adapter_on_its_base_as_peft_loads_it(made: tuple[Store, str], name: str) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    one = artifact(made, name)
    ids = (torch.arange(40) * 13 % 600)[None]
    base = AutoModelForCausalLM.from_pretrained(artifact(made, "base").path("model"), dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(one.path("model"), dtype=torch.float32)
    with torch.no_grad():
        bare = base(ids).logits
        # Embeddings that were trained whole are read into the base itself, so it is looked at first.
        adapted = peft.PeftModel.from_pretrained(base, str(one.path("adapter"))).eval()(ids).logits
        torch.testing.assert_close(merged(ids).logits, adapted, rtol=0, atol=1e-5)
        assert float((adapted - bare).abs().max()) > 1e-2, "the adapter does nothing, and its merge shows nothing"
    assert one.record.metrics["merge_difference"] < 1e-5


@pytest.mark.parametrize("name", ["lora", "four", "again"])
def test_the_same_run_gives_the_same_bytes_and_so_does_one_from_a_checkpoint(made: tuple[Store, str], name: str, capsys: Any) -> None:
    place = ("--store", made[0].root)
    cairn(capsys, "verify", f"tiny/{name}", "--replay", *place)
    cairn(capsys, "verify", f"tiny/{name}", "--interval", "0:8", *place)


def test_an_unmerged_adapter_is_loaded_on_its_base_and_merged_on_demand(made: tuple[Store, str], tmp_path: Path, capsys: Any) -> None:
    from cairn.model.load import load_model

    kept = artifact(made, "kept")
    assert not kept.path("model").exists()
    assert artifact(made, "scores").record.metrics["scores"]["held-out perplexity"]["value"] > 1
    cairn(capsys, "merge", "tiny/kept", tmp_path / "one", "--store", made[0].root)
    ids = (torch.arange(40) * 13 % 600)[None]
    with torch.no_grad():
        found = load_model(kept.path("adapter"))(ids).logits
        torch.testing.assert_close(found, load_model(tmp_path / "one")(ids).logits, rtol=0, atol=1e-5)
        assert float((found - load_model(artifact(made, "base").path("model"))(ids).logits).abs().max()) > 1e-2
    prompts, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n')
    cairn(capsys, "generate", "tiny/kept", "--in", prompts, "--out", answers, "--max-new-tokens", "4", "--store", made[0].root)
    assert len(answers.read_text().splitlines()) == 1


def test_an_adapter_from_elsewhere_needs_its_base(made: tuple[Store, str], tmp_path: Path, capsys: Any) -> None:
    import shutil

    alone, place = tmp_path / "alone", ("--store", made[0].root)
    shutil.copytree(artifact(made, "four").path("adapter"), alone)
    assert "--base" in cairn(capsys, "merge", alone, tmp_path / "out", *place, status=2)[1]
    assert "another base" in cairn(capsys, "merge", alone, tmp_path / "out", "--base", "tiny/lora", *place, status=2)[1]
    assert "no adapter to merge" in cairn(capsys, "merge", "tiny/base", tmp_path / "out", *place, status=2)[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone"]
    found = json.loads(cairn(capsys, "merge", alone, tmp_path / "out", "--base", "tiny/base", "--json", *place)[0])
    assert found["difference"] < 1e-5
    assert folder_digest(tmp_path / "out") == folder_digest(artifact(made, "four").path("model"))


def test_a_merge_that_is_not_the_adapter_is_loud_and_leaves_nothing(
    made: tuple[Store, str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora.layer import Linear

    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: right(self, name) * 1.1)
    err = cairn(capsys, "merge", "tiny/lora", tmp_path / "out", "--store", made[0].root, status=2)[1]
    assert "not the adapter on its base" in err
    assert list(tmp_path.iterdir()) == []
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(HEAD + stage("other", "kind: lora, rank: 2"))
    assert "not the adapter on its base" in cairn(capsys, "run", recipe, "--store", made[0].root, status=2)[1]
    assert "other" not in made[0].named()["tiny"]


def test_new_tokens_are_trained_and_saved_with_the_adapter(made: tuple[Store, str], tmp_path: Path, capsys: Any) -> None:
    recipe, place = tmp_path / "tiny.yaml", ("--store", made[0].root)
    grown = stage("grown", f"{LORA}, train: [embeddings]").replace("init: base", "init: base\n    tokenizer: larger")
    recipe.write_text(HEAD + grown)
    without = ("--set", "grown.adapter.train=[]")
    assert "adapter.train: [embeddings]" in cairn(capsys, "run", recipe, *without, *place, status=2)[1]
    cairn(capsys, "run", recipe, *place)
    one = artifact(made, "grown")
    old = load_file(artifact(made, "base").path("model/model.safetensors"))["model.embed_tokens.weight"]
    new = load_file(one.path("adapter/adapter_model.safetensors"))["base_model.model.model.embed_tokens.weight"]
    assert (old.shape[0], new.shape[0]) == (600, 640)
    assert torch.equal(load_file(one.path("model/model.safetensors"))["model.embed_tokens.weight"], new)
    assert 0 < float((new[600:] - old.mean(0)).abs().max()) < 0.25


def test_a_module_that_does_not_exist_is_refused_before_anything_runs(tmp_path: Path, capsys: Any) -> None:
    recipe, store = tmp_path / "tiny.yaml", tmp_path / "store"
    recipe.write_text(HEAD + stage("chat", "targets: [q_prj, v_proj]"))
    for verb in ("plan", "run"):
        err = cairn(capsys, verb, recipe, "--store", store, status=2)[1]
        assert "no matrix 'q_prj'" in err
        assert "did you mean 'q_proj'" in err
    assert not list(store.glob("artifacts/*"))
    for bad, says in {
        "targets: [lm_head]": "train it whole", "targets: []": "names no matrix", "kind: ia3, rank: 3": "ia3 has no rank",
        "knd: lora": "'kind'", "train: [head, head]": "twice",
    }.items():  # fmt: skip
        recipe.write_text(HEAD + stage("chat", bad))
        assert says in cairn(capsys, "run", recipe, "--store", store, status=2)[1]
    recipe.write_text(HEAD + stage("chat", "kind: lora").replace("init: base", "model: {}\n    tokenizer: tokenizer"))
    assert "needs a trained model" in cairn(capsys, "run", recipe, "--store", store, status=2)[1]


def test_a_base_from_outside_is_known_by_its_content(made: tuple[Store, str], tmp_path: Path, capsys: Any) -> None:
    import shutil

    outside, recipe, place = tmp_path / "outside", tmp_path / "tiny.yaml", ("--store", made[0].root)
    shutil.copytree(artifact(made, "base").path("model"), outside)
    recipe.write_text(HEAD + stage("abroad", "kind: ia3, merge: false").replace("init: base", f"checkpoint: {outside}"))
    cairn(capsys, "run", recipe, *place)
    cairn(capsys, "merge", "tiny/abroad", tmp_path / "one", *place)
    (outside / "config.json").write_text((outside / "config.json").read_text() + "\n")
    assert "another base" in cairn(capsys, "merge", "tiny/abroad", tmp_path / "two", *place, status=2)[1]
    shutil.rmtree(outside)
    assert "no longer there" in cairn(capsys, "merge", "tiny/abroad", tmp_path / "two", *place, status=2)[1]
    assert not (tmp_path / "two").exists()
