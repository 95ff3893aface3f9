"""Cairn's side of the training benchmark: the public training loop as the stage `train` runs it. Knows nothing of the peers.

The clock hangs on the loop's progress, so that everything the loop does in a step is in its time: metrics, watching, checkpoints.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from worker import Stop, Turns, job, peak_mb, read_rows, reply

from cairn.data.batches import Batch, PackedStream, make_batch
from cairn.data.encode import Encoded
from cairn.ledger.progress import Silent
from cairn.model.determinism import deterministic
from cairn.model.load import load_model, save_model
from cairn.model.speed import gemm_rate
from cairn.train.config import Training
from cairn.train.loop import Trainer


class OneBatch:
    """A stream that gives the same documents at every step."""

    def __init__(self, documents: list[Encoded]) -> None:
        self.batch = make_batch(documents, [0] * len(documents))

    def __next__(self) -> Batch:
        return self.batch

    def state(self) -> dict[str, int]:
        return {}

    def restore(self, state: dict[str, int]) -> None:
        del state


class Clock(Silent):
    """The loop's progress, which closes a step of the benchmark's clock."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.trainer = turns, None

    def start(self, total: int | None = None, unit: str = "", done: int = 0) -> None:
        self.turns.first = time.perf_counter()

    def update(self, done: int, **figures: float | int | str) -> None:
        trainer: Any = self.trainer
        self.turns.step(trainer.seen["tokens"])

    def note(self, text: str) -> None:
        print(text, flush=True)


def gemm() -> dict[str, Any]:
    """The machine's bf16 rate at this moment."""
    gemm_rate.cache_clear()
    return {"gflops": gemm_rate("bfloat16", seconds=0.5)}


def main() -> None:
    told = job()
    deterministic()
    documents = [Encoded(ids, mask) for ids, mask in read_rows(told["rows"])]
    training = Training(**told["training"])
    stream: Any
    if told.get("whole"):
        stream = OneBatch(documents)
    else:
        stream = PackedStream([documents], [1.0], told["seed"], training.sequence_length, training.batch_sequences * training.accumulate)
    clock = Clock(Turns(told["warmup"], {"gemm": gemm}))
    folder = Path(told["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    clock.trainer = trainer = Trainer(load_model(told["model"], "float32", eval_mode=False), stream, training, folder, clock)
    try:
        trainer.run()
        clock.turns.end()
    except Stop:
        pass
    first = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    reply(peak_mb=peak_mb(), loss=first["loss"], packed=trainer.packed)
    if told.get("save"):
        save_model(trainer.finished_model(), Path(told["save"]))
        reply(saved=told["save"])


if __name__ == "__main__":
    main()
