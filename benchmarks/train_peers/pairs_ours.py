"""Cairn's side of the preference benchmark: the public training loop with the objective preference. Knows nothing of the peers."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from ours import Clock, OneBatch
from worker import Stop, Turns, job, peak_mb, reply

from cairn.data.batches import PackedStream
from cairn.data.encode import Encoded
from cairn.model.determinism import deterministic
from cairn.model.load import load_model
from cairn.train.config import Training
from cairn.train.loop import Trainer


class Pairs(Clock):
    """Counts pairs where the other benchmark counts tokens."""

    def update(self, done: int, **figures: float | int | str) -> None:
        trainer: Any = self.trainer
        if trainer is not None and trainer.watch is not None:
            self.turns.step(trainer.stream.pairs)


class Counting:
    """A stream that counts the documents that it gave."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.pairs = stream, 0

    def __next__(self) -> Any:
        batch = next(self.stream)
        self.pairs += len(batch.doc_lengths)
        return batch

    def state(self) -> dict[str, int]:
        state: dict[str, int] = self.stream.state()
        return state

    def restore(self, state: dict[str, int]) -> None:
        self.stream.restore(state)


def main() -> None:
    told = job()
    deterministic()
    with np.load(told["rows"]) as stored:
        ends = np.cumsum(stored["lengths"])[:-1]
        columns = np.split(stored["ids"], ends), np.split(stored["mask"], ends), stored["answers"].tolist()
        documents = [Encoded(ids, mask, tuple(answers)) for ids, mask, answers in zip(*columns, strict=True)]
    training = Training(**told["training"])
    stream: Any
    if told.get("whole"):
        stream = OneBatch(documents)
    else:
        stream = PackedStream([documents], [1.0], told["seed"], training.sequence_length, training.batch_sequences * training.accumulate)
    clock, folder = Pairs(Turns(told["warmup"])), Path(told["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(load_model(told["model"], "float32", eval_mode=False), Counting(stream), training, folder, clock)
    trainer.take_reference([documents], folder / "reference.safetensors")
    clock.trainer = trainer
    with contextlib.suppress(Stop):
        trainer.run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    reference = trainer.objective.reference.values[0].tolist() if told.get("whole") else None
    reply(peak_mb=peak_mb(), losses=[line["loss"] for line in lines[:8]], reference=reference, packed=trainer.packed)


if __name__ == "__main__":
    main()
