"""Training rewards: the losses are their formulas, rankings are learnt, margins widen, and a stop changes no byte."""

from __future__ import annotations

import math

import pytest
import torch

from cairn.data.batches import PackedStream
from cairn.ledger.progress import Silent
from cairn.model.determinism import deterministic
from cairn.model.load import save_model
from cairn.model.reward import reward_from
from cairn.train.comparisons import plackett_luce
from cairn.train.config import Training
from cairn.train.forward import TorchBatch
from cairn.train.loop import Trainer, read_metrics

from .test_preference import preferences, tiny


def make(folder, loss, **settings):
    deterministic(1)
    values = {"steps": 30, "sequence_length": 24, "batch_sequences": 8, "objective": "reward", "reward": loss}
    config = Training.model_validate(values | {"optimizer": {"kind": "adamw", "lr": 0.003}} | settings)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(tiny(), folder / "lm")
    model = reward_from(folder / "lm", seed=1, pad_id=0)
    stream = PackedStream([preferences()], [1.0], 7, config.sequence_length, config.batch_sequences * config.accumulate)
    return Trainer(model, stream, config, folder, Silent())


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


@pytest.mark.parametrize("loss", [
    {}, {"margin": 0.7}, {"margin": "rows"}, {"centre": 0.1}, {"loss": "plackett_luce"},
])  # fmt: skip
def test_each_loss_is_its_formula(tmp_path, loss):
    trainer = make(tmp_path, loss)
    batch = TorchBatch.of(next(trainer.stream), "cpu", packed=trainer.packed)
    with torch.no_grad():
        values = trainer.objective.measure(trainer.model, batch)
    wanted = 0.0
    for document, own in enumerate(values.split(batch.per_document)):
        r, n = own.tolist(), len(own)
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
        if loss.get("loss") == "plackett_luce":
            wanted += sum(math.log(sum(math.exp(x) for x in r[i:])) - r[i] for i in range(n - 1)) / (n - 1)
        else:
            margin = batch.margins[document] if loss.get("margin") == "rows" else loss.get("margin", 0.0)
            wanted -= sum(log_sigmoid(r[i] - r[j] - margin) for i, j in pairs) / len(pairs)
        wanted += loss.get("centre", 0.0) * sum((r[i] + r[j]) ** 2 for i, j in pairs) / len(pairs)
    trainer.stream.restore({"step": 0, "cursor": 0})
    assert trainer.one_step()["loss"] == pytest.approx(wanted / len(batch.lengths), rel=1e-5)


def test_a_ranking_of_two_is_a_pair():
    scores = torch.tensor([0.3, -0.4, 1.0, 2.0])
    assert plackett_luce(scores, [2, 2]).tolist() == pytest.approx([-log_sigmoid(0.7), -log_sigmoid(-1.0)])


@pytest.mark.parametrize("loss", [{}, {"loss": "plackett_luce"}])
def test_it_learns_the_order(tmp_path, loss):
    trainer = make(tmp_path, loss, steps=40)
    trainer.resume()
    trainer.run()
    lines = [line["objective"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert lines[-1]["accuracy"] > 0.95
    assert lines[-1]["margin"] > lines[0]["margin"] + 1


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path):
    settings = {"steps": 8, "checkpoints": {"every": 4, "resume_seconds": 1e-9}, "optimizer": {"kind": "muon"}}
    whole = make(tmp_path / "whole", {}, **settings)
    whole.resume()
    whole.run()
    first = make(tmp_path / "cut", {}, **settings)
    first.resume()
    first.run(until=5)
    again = make(tmp_path / "cut", {}, **settings)
    assert again.resume()
    again.run()
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert all(torch.equal(p, again.masters.named[name]) for name, p in whole.masters.named.items())


def test_passes_change_nothing_but_rounding(tmp_path):
    found = []
    for name, cut in (("one", {"batch_sequences": 8}), ("four", {"batch_sequences": 2, "accumulate": 4})):
        trainer = make(tmp_path / name, {"centre": 0.01}, steps=6, **cut)
        trainer.resume()
        trainer.run()
        found.append([line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
