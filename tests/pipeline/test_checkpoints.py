"""A checkpoint's parameters are counted from the heads of its files, and a plan to train it knows its size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.chat.format import load_format
from cairn.errors import UserError
from cairn.ledger.store import Store
from cairn.pipeline.checkpoints import saved_parameters
from cairn.pipeline.plan import make_plan
from cairn.pipeline.recipe import load_recipe
from cairn.pipeline.run import run_recipe
from cairn.tokenizer.train import byte_tokenizer, save

Write = Callable[..., str]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, folder / "model-1.safetensors", {"format": "pt"})
    save_file({"c": torch.zeros(2, 2, 2)}, folder / "model-2.safetensors")
    k2 = load_format("k2")
    save(byte_tokenizer(k2).backend, k2, folder)
    return folder


TRAIN = """  chat:
    kind: train
    checkpoint: {checkpoint}
    data: [{{name: mine, path: {rows}}}]
    steps: 10
"""


def test_parameters_are_those_of_the_files_that_are_loaded(checkpoint: Path) -> None:
    assert saved_parameters(checkpoint) == 15 + 7 + 8
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"c": "model-2.safetensors"}}))
    assert saved_parameters(checkpoint) == 8
    index.write_text(json.dumps({"weight_map": {"c": "model-3.safetensors"}}))
    with pytest.raises(UserError, match="missing"):
        saved_parameters(checkpoint)


@pytest.mark.parametrize("content", [b"", b"\xff" * 32, (2).to_bytes(8, "little") + b"[]", (9).to_bytes(8, "little") + b'{"a": {}}'])
def test_damaged_heads_are_told(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "model-2.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged") as caught:
        saved_parameters(checkpoint)
    assert caught.value.where.endswith("model-2.safetensors")


def test_a_plan_counts_a_checkpoint_and_sees_that_the_disk_is_too_small(
    write_recipe: Write, store: Store, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cairn.model.speed.gemm_rate", lambda *_: 100.0)
    rows = tmp_path / "mine.jsonl"
    rows.write_text('{"text": "x"}\n')
    recipe = load_recipe(write_recipe(TRAIN.format(checkpoint=checkpoint, rows=rows)))
    (step,) = make_plan(recipe, store)
    assert step.estimate.parameters == 30
    assert (step.estimate.disk_bytes or 0) >= 30 * 4 * 4, "weights, master weights and two moments"
    monkeypatch.setattr(Store, "free_bytes", lambda self: 32_000_000)
    monkeypatch.setattr("cairn.pipeline.training_cost.saved_parameters", lambda folder: 10**7)
    with pytest.raises(UserError, match="too little room"):
        run_recipe(recipe, store)
    (checkpoint / "config.json").unlink()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no config\.json") as caught:
        make_plan(recipe, store)
    assert caught.value.where == str(checkpoint)


def test_times_of_stages_that_read_rows_follow_their_size(write_recipe: Write, store: Store, tmp_path: Path) -> None:
    rows = tmp_path / "mine.jsonl"
    rows.write_text('{"text": "xyz"}\n' * 1000)
    text = f"  rows: {{kind: data, sources: [{{name: mine, path: {rows}}}]}}\n"
    text += "  tokenizer: {kind: tokenizer, data: [{name: mine, stage: rows, file: mine.train.jsonl}]}\n"
    data, tokenizer = make_plan(load_recipe(write_recipe(text)), store)
    assert data.estimate.seconds == pytest.approx(16000 / 10e6)
    assert tokenizer.estimate.seconds == pytest.approx(2 * 16000 / 2.3e6)
    rows.write_text('{"text": "xyz"}\n' * 2000)
    assert make_plan(load_recipe(write_recipe(text)), store)[0].estimate.seconds == pytest.approx(32000 / 10e6)


def test_a_checkpoint_is_counted_without_torch(checkpoint: Path) -> None:
    code = (
        f"import sys; from pathlib import Path; from cairn.pipeline.checkpoints import saved_parameters as s; s(Path({str(checkpoint)!r}))"
    )
    subprocess.run([sys.executable, "-c", code + "; assert not {'torch', 'transformers'} & set(sys.modules)"], check=True)
