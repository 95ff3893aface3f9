"""Training an adapter in the loop: packed as unpacked, its base untouched, and resumed to the same bytes though it drops inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cairn.data.batches import PackedStream
from cairn.ledger.digest import folder_digest
from cairn.ledger.progress import Silent
from cairn.model.adapter import attach
from cairn.model.adapter_config import AdapterConfig
from cairn.model.determinism import deterministic
from cairn.model.load import new_model
from cairn.model.nf4 import quantise_linears
from cairn.train.config import Training
from cairn.train.loop import Trainer, read_metrics

from .conftest import SHAPE, documents


def make(folder, *, adapter=None, held="full", seed=1, **settings):
    deterministic(1)
    shape = {"steps": 8, "sequence_length": 32, "batch_sequences": 2, "accumulate": 2}
    config = Training.model_validate(shape | {"optimizer": {"kind": "adamw", "lr": 0.02}} | settings)
    model = new_model(SHAPE, vocab_size=50, bos_id=None, eos_id=0, pad_id=None, seed=1)
    if held == "nf4":
        quantise_linears(model.base_model)
    attach(model, AdapterConfig(rank=4, **(adapter or {"dropout": 0.3})), seed)
    folder.mkdir(parents=True, exist_ok=True)
    stream = PackedStream([documents()], [1.0], 7, config.sequence_length, config.batch_sequences * config.accumulate)
    return Trainer(model, stream, config, folder, Silent(), seed=seed)


def losses(folder):
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def run(trainer, until=None):
    trainer.resume()
    return trainer.run(until)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("held", ["full", "nf4"])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path, precision, held):
    settings = {"precision": precision, "held": held, "checkpoints": {"every": 4, "resume_seconds": 1e-9}}
    whole = make(tmp_path / "whole", **settings)
    figures = run(whole)
    run(make(tmp_path / "cut", **settings), until=3)
    torch.rand(7)  # Whatever else draws from the global generator must not matter.
    second = make(tmp_path / "cut", **settings)
    assert 0 < second.resume() <= 2
    assert second.run() == figures
    for place in ("whole", "cut"):
        assert figures["packed"]
        assert (tmp_path / place / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert folder_digest(tmp_path / "cut" / "checkpoints") == folder_digest(tmp_path / "whole" / "checkpoints")
    ours, theirs = whole.masters.named, second.masters.named
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_dropout_differs_from_step_to_step_and_with_the_seed(tmp_path):
    """At rate 0 nothing but the drawing can change a loss; every step sees the same batch."""
    trainer = make(tmp_path / "one")
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    found = []
    for step, seed in ((0, 1), (0, 1), (1, 1), (0, 2)):
        trainer.stream.restore({"step": 0, "cursor": 0})
        trainer.step, trainer.seed = step, seed
        weights = {n: t.detach().clone() for n, t in trainer.masters.named.items()}
        found.append(trainer.one_step()["loss"])
        trainer.masters.load(weights)
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_packed_equals_unpacked(tmp_path, kind):
    for name in ("packed", "alone"):
        trainer = make(tmp_path / name, adapter={"kind": kind})
        assert trainer.packed
        if name == "alone":
            trainer.packed = False
            trainer.model.set_attn_implementation(trainer.plain_attention)
        run(trainer)
    np.testing.assert_allclose(losses(tmp_path / "packed"), losses(tmp_path / "alone"), rtol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_base_does_not_move_and_has_no_state(tmp_path, precision):
    trainer = make(tmp_path, precision=precision)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    run(trainer)
    assert before
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)
    assert not set(trainer.masters.named) & set(before)
    assert {key.rpartition("/")[0] for key in trainer.optimizer.state()} == set(trainer.masters.named)
    assert all(t.dtype == torch.float32 for t in trainer.masters.named.values())
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
