"""A tiny model and stream that train in milliseconds."""

from __future__ import annotations

import numpy as np
import pytest

from cairn.data.batches import PackedStream
from cairn.data.encode import document
from cairn.ledger.progress import Silent
from cairn.model.adapter import attach
from cairn.model.config import ModelConfig
from cairn.model.determinism import deterministic
from cairn.model.load import new_model
from cairn.model.nf4 import quantise_linears
from cairn.train.config import Training
from cairn.train.loop import Trainer

SHAPE = ModelConfig(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64, context=64)


def documents(count=40, seed=0):
    """Counting sequences of several lengths; the second half of each is supervised."""
    draw = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        n, start = int(draw.integers(4, 24)), int(draw.integers(0, 40))
        out.append(document([(start + i) % 50 for i in range(n)], [int(i >= n // 2) for i in range(n)]))
    return out


@pytest.fixture
def make_trainer():
    """make_trainer(folder, **training) → a Trainer on the tiny model."""

    def make(
        folder, *, family="llama", extra=None, mup=None, sources=None, weights=None, progress=None, frozen="", adapter=None, **settings
    ):  # fmt: skip
        deterministic(1)
        values = {"steps": 12, "sequence_length": 32, "batch_sequences": 4, "objective": "supervised"} | settings
        config = Training.model_validate(values)
        shape = ModelConfig.model_validate({**SHAPE.model_dump(), "family": family, "extra": extra or {}, "mup": mup})
        model = new_model(shape, vocab_size=50, bos_id=None, eos_id=0, pad_id=None, seed=1)
        for name, p in model.named_parameters():
            p.requires_grad_(not frozen or frozen not in name)
        if adapter is not None:
            if adapter.base == "nf4":
                quantise_linears(model.base_model)
            attach(model, adapter, 1)
        rows = sources or [documents()]
        stream = PackedStream(rows, weights or [1.0] * len(rows), 7, config.sequence_length, config.batch_sequences * config.accumulate)
        folder.mkdir(parents=True, exist_ok=True)
        return Trainer(model, stream, config, folder, progress or Silent())

    return make
