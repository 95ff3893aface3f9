"""The stage `train` through the command line: what its optimiser's options leave in the store."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from cairn.cli.main import main
from cairn.ledger.store import Artifact, Store
from cairn.model.native import train as native

RECIPE = """\
recipe: tiny
seed: 1
stages:
  tokenizer:
    kind: tokenizer
    vocab_size: 300
    data: [{name: mine, path: rows.jsonl}]
  base:
    kind: train
    tokenizer: tokenizer
    objective: language_model
    model: {hidden_size: 16, layers: 1, heads: 2, intermediate_size: 16, tied: false}
    data: [{name: mine, path: rows.jsonl}]
    steps: 6
    sequence_length: 32
    batch_sequences: 1
    precision: bfloat16-pure
    optimizer:
      state: int8
      groups:
        - {match: "*.embed_tokens.weight", lr: 0.1}
        - {match: "*norm.weight", weight_decay: 0.1}
    schedule: {kind: trapezoid, warmup_steps: 2, decay_steps: 3}
    ema: {decay: 0.5, use: both}
    checkpoints: {every: 3}
"""


def test_all_options_at_once_run_repeat_and_replay(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"Text {i} of some that are read."}) + "\n" for i in range(20)))
    stages = []
    for store in ("one", "two"):
        assert main(["run", "tiny.yaml", "--store", store, "--json"]) == 0
        told = capsys.readouterr()
        stages.append(json.loads(told.out)["stages"][-1])
    assert stages[0]["digest"] == stages[1]["digest"]
    assert "optimiser states take" in told.err
    artifact = Artifact(Store(tmp_path / "one").artifacts / stages[0]["key"])
    average, last = (load_file(artifact.path(f"{folder}/model.safetensors")) for folder in ("model", "model-last"))
    assert artifact.path("model-last/tokenizer.json").is_file()
    assert average.keys() == last.keys()
    assert not any(torch.equal(average[name], last[name]) for name in average)
    assert all(torch.equal(w, w.bfloat16().float()) for w in last.values()), "the last weights are bf16 values"
    monkeypatch.setenv("CAIRN_STORE", "one")
    assert main(["verify", "tiny/base", "--replay", "--interval", "3:6"]) == 2, "the last step keeps no checkpoint"
    assert main(["verify", "tiny/base", "--replay", "--interval", "0:3"]) == 0
    assert main(["verify", "tiny/base", "--replay"]) == 0


def test_a_replay_tells_that_other_kernels_computed(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    if native.missing():
        pytest.skip(native.missing())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"Text {i} of some that are read."}) + "\n" for i in range(20)))
    assert main(["run", "tiny.yaml", "--store", "store", "--json"]) == 0
    key = json.loads(capsys.readouterr().out)["stages"][-1]["key"]
    assert Artifact(Store(tmp_path / "store").artifacts / key).record.environment["formulas"] == "native"
    monkeypatch.setattr(native, "missing", lambda: "the compiler is gone")
    for interval in ([], ["--interval", "0:3"]):
        main(["verify", key, "--replay", "--store", "store", *interval])
        told = capsys.readouterr()
        assert "formulas was 'native' and is 'plain'" in told.out + told.err
