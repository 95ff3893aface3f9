"""Training a predictor: the loss is its formula, missing labels have no term, passes change only rounding, and labels are learnt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cairn.data.batches import PackedStream
from cairn.data.encode import Encoded
from cairn.ledger.progress import Silent
from cairn.model.determinism import deterministic
from cairn.model.load import save_model
from cairn.model.reward import reward_from, scores
from cairn.train.config import Training
from cairn.train.forward import TorchBatch
from cairn.train.loop import Trainer, read_metrics

from .test_preference import tiny

SPANS = [4, 8]


def rows():
    """Documents of random ids; the first label is the last id but one, the second, often missing, the length."""
    draw = np.random.default_rng(1)
    documents, labels = [], []
    for i in range(60):
        ids = np.r_[draw.integers(3, 20, draw.integers(2, 9)), 10 + i % 5, 2].astype(np.int32)
        documents.append(Encoded(ids, np.ones(len(ids), np.uint8)))
        labels.append([float(i % 5), math.nan if i % 3 else float(len(ids))])
    return documents, labels


def make(folder, **settings):
    deterministic(1)
    values = {"steps": 60, "sequence_length": 24, "batch_sequences": 4, "objective": "attributes", "compile": "off"}
    config = Training.model_validate(values | {"optimizer": {"kind": "adamw", "lr": 0.01}} | settings)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(tiny(), folder / "lm")
    documents, labels = rows()
    model = reward_from(folder / "lm", seed=1, pad_id=0, labels=["a", "b"])
    stream = PackedStream([documents], [1.0], 7, config.sequence_length, config.batch_sequences * config.accumulate)
    trainer = Trainer(model, stream, config, folder, Silent())
    trainer.objective.give([labels], SPANS)
    return trainer


def test_the_loss_is_its_formula(tmp_path):
    trainer = make(tmp_path)
    whole = next(trainer.stream)
    batch = TorchBatch.of(whole, "cpu", packed=trainer.packed, multiple=16)  # a filling has no label
    documents, labels = rows()
    plain = reward_from(tmp_path / "lm", seed=1, pad_id=0, labels=["a", "b"])
    found = scores(plain, [documents[n].ids.tolist() for n in whole.documents])
    terms = [
        ((value - label) / span) ** 2
        for number, values in zip(whole.documents, found, strict=True)
        for value, label, span in zip(values, labels[number], SPANS, strict=True) if not math.isnan(label)
    ]  # fmt: skip
    loss = trainer.objective.loss(trainer.model, batch)
    assert float(loss.total.detach()) == pytest.approx(sum(terms), rel=1e-4)
    assert loss.count == len(terms) == trainer.objective.count(whole)
    assert len(terms) < 2 * len(whole.documents)


def test_a_pass_that_keeps_others_company_counts_nothing(tmp_path):
    trainer = make(tmp_path)
    idle = TorchBatch.of(next(trainer.stream).idle(), "cpu", packed=trainer.packed)
    loss = trainer.objective.loss(trainer.model, idle)
    assert float(loss.total.detach()) == 0
    assert loss.count == 0
    assert not any(loss.metrics.values())


def test_labels_are_learnt(tmp_path):
    trainer = make(tmp_path)
    trainer.resume()
    trainer.run()
    distances = [line["objective"]["distance"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert distances[-1] < 0.5 < distances[0]


def test_passes_change_nothing_but_rounding(tmp_path):
    found = []
    for name, cut in (("one", {"batch_sequences": 4}), ("two", {"batch_sequences": 2, "accumulate": 2})):
        trainer = make(tmp_path / name, steps=5, **cut)
        trainer.resume()
        trainer.run()
        found.append([line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert all(math.isfinite(loss) for loss in found[0])
    assert not torch.isnan(trainer.model.score.weight).any()
