"""What checkpoints and watching take from a training's time.

A checkpoint's price is what a stretch of steps from its beginning on takes longer than the stretches before and after it (median), so that
waiting, copying, and the thread's use of cores and memory are all in it. The peer is the same checkpoint written in the foreground.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from cairn.config import Config
from cairn.ledger.progress import Live, Silent
from cairn.pipeline.bench import Row, row, say, workspace


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """Where checkpoints are written; None: a temporary folder."""
    hidden_size: int = Field(256, gt=0)
    layers: int = Field(6, gt=0)
    vocabulary: int = Field(8192, gt=0)
    times: int = Field(14, gt=0)
    """Checkpoints of each kind."""
    steps: int = Field(3, gt=0)
    """Steps of a stretch."""


def run(options: Options) -> list[Row]:
    """Measure. The machine should do nothing else."""
    with workspace(options.store, "checkpoint") as place:
        trainer = _trainer(options, place.folder)
        trainer.run(until=2)  # what is made once: the optimiser's state, the measured rate
        size = trainer.state().bytes
        found: dict[str, list[float]] = {kind: [] for kind in ("without", *_WRITE)}
        for number in range(options.times):
            say(f"checkpoint {number + 1} of {options.times}")
            before = _stretch(trainer, options.steps)
            for kind, write in _WRITE.items():
                during = _stretch(trainer, options.steps, lambda write=write: write(trainer, place.folder / "bench"))
                trainer.writer.close()
                after = _stretch(trainer, options.steps)
                found[kind].append(during - (before + after) / 2)
                found["without"].append(before / options.steps)
                before = after
        step, behind, front = (statistics.median(found[kind]) for kind in ("without", "behind", "front"))
        interval = trainer.writer.rest(trainer.config.checkpoints.resume_seconds)
        shown, drawn = _watching(trainer)
    return [
        row("checkpoint, MB", round(size / 1e6, 1)),
        row("seconds that a checkpoint takes from training; peer: in the foreground", behind, peer=front),
        row("of them, waited for by the steps or spent by the thread on a core", trainer.writer.cost),
        row("seconds of a step", step),
        row("seconds between two resume points", round(interval, 1)),
        row("share of the time that resume points take", behind / interval, "<= 0.02"),
        row("share of a step that its lines and figures take", shown / step, "<= 0.01"),
        row("share of one core that drawing the live view twice a second takes", 2 * drawn, "<= 0.01"),
    ]


def _trainer(options: Options, folder: Path) -> Any:
    import numpy as np

    from cairn.data.batches import PackedStream
    from cairn.data.encode import document
    from cairn.model.config import ModelConfig
    from cairn.model.determinism import deterministic
    from cairn.model.load import new_model
    from cairn.train.config import Training
    from cairn.train.loop import Trainer

    deterministic()
    width = options.hidden_size
    shape = ModelConfig(hidden_size=width, layers=options.layers, heads=max(1, width // 64), intermediate_size=8 * width // 3, context=512)
    model = new_model(shape, vocab_size=options.vocabulary, bos_id=None, eos_id=0, pad_id=None, seed=1)
    draw = np.random.default_rng(0)
    rows = [document(draw.integers(0, options.vocabulary, 200).tolist(), [1] * 200) for _ in range(400)]
    config = Training.model_validate(
        {"steps": 10_000, "sequence_length": 512, "batch_sequences": 4, "precision": "bfloat16", "compile": "off"}
    )
    (folder / "run").mkdir(parents=True)
    return Trainer(model, PackedStream([rows[:200], rows[200:]], [1, 1], 1, 512, 4), config, folder / "run", Silent())


def _stretch(trainer: Any, steps: int, first: Callable[[], Any] = lambda: None) -> float:
    begun = time.perf_counter()
    first()
    for _ in range(steps):
        trainer.one_step()
    return time.perf_counter() - begun


def _behind(trainer: Any, folder: Path) -> None:
    trainer.writer.save(folder, trainer.step, trainer.state(), 1)


def _front(trainer: Any, folder: Path) -> None:
    from cairn.train import checkpoint

    checkpoint.save(folder, trainer.step, trainer.state())
    checkpoint.retain(folder, 1)


_WRITE = {"behind": _behind, "front": _front}


def _watching(trainer: Any) -> tuple[float, float]:
    """(seconds of judging, writing and handing over one step; seconds on a core of drawing the view once)."""
    from rich.console import Console

    from cairn.train.watch import Watch, Work

    live = Live("bench", Console(file=io.StringIO(), force_terminal=True, width=140))
    work = Work.of(trainer.model, trainer.config.compute)
    watch = Watch(trainer.folder, trainer.config.watch, trainer.origins, live, work, (0, 1000), [2.0] * 200)
    told: list[float] = []
    tell = watch.tell

    def timed(line: dict[str, Any], tally: Any, seconds: float) -> None:
        begun = time.perf_counter()
        watch.judge(line["step"], line["loss"], tally)
        tell(line, tally, seconds)
        told.append(time.perf_counter() - begun)

    with watch:
        watch.tell = timed  # type: ignore[method-assign]
        trainer.watch = watch
        for _ in range(5):
            trainer.one_step()
        trainer.watch = None
        begun = time.thread_time()
        for _ in range(50):
            live.bar.refresh()
        drawn = (time.thread_time() - begun) / 50
    live.close()
    return statistics.median(told), drawn
