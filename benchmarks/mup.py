"""muP: sizes of activations over widths (coordinate check), and the best rate of each width, with it and without it.

Small models on pebble's texts, every run with the same batches. Sizes: by how much each layer's output has changed after a few steps, as
the exponent of the width that fits best; 0 is what muP promises. Rates: the rate with the lowest mean loss over the last quarter of a
short run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cairn.config import Config
from cairn.pipeline.bench import Row, row, say

Kind = Literal["adamw", "muon"]
SETTINGS: tuple[tuple[Kind, bool], ...] = (("adamw", False), ("adamw", True), ("muon", False), ("muon", True))
GRID = 2.0
"""Ratio of neighbouring rates."""


class Options(Config):
    """How it is measured."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Of the runs that find the best rate; the first is the base width. Multiples of 16."""
    check_widths: tuple[int, ...] = (64, 128, 256, 512)
    """Of the coordinate check; the first is the base width."""
    adamw_rates: tuple[float, ...] = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
    """AdamW's rates at the base width, each twice the one before."""
    muon_rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
    """Muon's rates, each twice the one before; AdamW's beside it stay at 0.01."""
    steps: int = Field(default=60, gt=4)
    """Of a run, at 1,024 tokens each."""
    check_steps: int = Field(default=4, gt=0)
    """Steps before the coordinate check looks."""
    picture: Path | None = None
    """A PNG to draw the losses into."""


def run(options: Options) -> list[Row]:
    """Measure."""
    from cairn.model.determinism import deterministic

    deterministic()
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), options)
        rows = [r for kind, mup in SETTINGS for r in slope_rows(kind, mup, bench.slopes(kind, mup))]
        losses = {(kind, mup): bench.losses(kind, mup) for kind, mup in SETTINGS}
    for (kind, mup), found in losses.items():
        rows += rate_rows(kind, mup, found)
    if options.picture is not None:
        draw(losses, options.picture)
    return rows


def name(kind: Kind, mup: bool) -> str:
    """Of a setting, for people."""
    return f"{'AdamW' if kind == 'adamw' else 'Muon'} {'with' if mup else 'without'} muP"


def slope(sizes: dict[int, float]) -> float:
    """The exponent e of size ~ width^e, by least squares of the logarithms."""
    xs, ys = [math.log(w) for w in sizes], [math.log(s) for s in sizes.values()]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def slope_rows(kind: Kind, mup: bool, sizes: dict[str, dict[int, float]]) -> list[Row]:
    """{what: {width: size}} → one row: the exponent that is farthest from 0, bounded for muP and told for the others."""
    found = {what: slope(by_width) for what, by_width in sizes.items()}
    worst = max(found, key=lambda what: abs(found[what]))
    measure = f"{name(kind, mup)}: change of activations, exponent of the width, farthest from 0 ({worst})"
    told = ", ".join(f"{what} {e:+.2f}" for what, e in found.items())
    say(f"{name(kind, mup)}: exponents {told}")
    return [row(measure, round(abs(found[worst]), 3), "<= 0.25" if mup else "")]


def best_rates(losses: dict[int, dict[float, float]]) -> dict[int, float]:
    """{width: {rate: loss}} → {width: the rate with the lowest loss}."""
    return {width: min(by_rate, key=lambda rate: (math.isnan(by_rate[rate]), by_rate[rate])) for width, by_rate in losses.items()}


def rate_rows(kind: Kind, mup: bool, losses: dict[int, dict[float, float]]) -> list[Row]:
    """The best rate of each width, how many steps of the grid lie between them, and what the base width's best rate costs the widest."""
    best = best_rates(losses)
    rows = [row(f"{name(kind, mup)}: best rate at width {width} (loss {losses[width][rate]:.3f})", rate) for width, rate in best.items()]
    steps = math.log(max(best.values()) / min(best.values()), GRID)
    bound = "<= 1" if mup else "> 1" if kind == "adamw" else ""
    rows.append(row(f"{name(kind, mup)}: steps of the grid between the best rates of all widths", round(steps), bound))
    base, widest = min(losses), max(losses)
    lost = losses[widest][best[base]] - losses[widest][best[widest]]
    return [*rows, row(f"{name(kind, mup)}: loss that width {widest} gives away at the best rate of width {base}", round(lost, 4))]


def draw(losses: dict[tuple[Kind, bool], dict[int, dict[float, float]]], path: Path) -> None:
    """One picture: the loss against the rate, a curve a width, a panel a setting.

    Raises:
        UserError: the drawing library is missing.
    """
    from cairn.errors import UserError
    from cairn.report.plot import REMEDY, can_plot

    if not can_plot():
        raise UserError("the curves cannot be drawn: matplotlib is not installed", where="picture", remedy=REMEDY)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(3.0 * len(losses), 3.0), dpi=90, layout="constrained")
        axes = figure.subplots(1, len(losses), sharey=True, squeeze=False)[0]
        for axis, ((kind, mup), found) in zip(axes, losses.items(), strict=True):
            for number, (width, by_rate) in enumerate(found.items()):
                colour = ("#9ecae1", "#4292c6", "#08306b")[min(number, 2)]
                axis.plot(list(by_rate), list(by_rate.values()), marker="o", markersize=3, color=colour, label=f"width {width}")
                best = min(by_rate, key=lambda rate: by_rate[rate])
                axis.plot([best], [by_rate[best]], marker="*", markersize=11, color=colour)
            axis.set_xscale("log", base=2)
            axis.set_title(name(kind, mup), fontsize=10)
            axis.set_xlabel("rate")
            axis.grid(visible=True, color="#e6e6e6", linewidth=0.6)
        lowest = min(min(by_rate.values()) for found in losses.values() for by_rate in found.values())
        axes[0].set_ylim(lowest - 0.1, lowest + 2.5)
        axes[0].set_ylabel("loss, nats a token")
        axes[0].legend(fontsize=8)
        figure.savefig(path, format="png", metadata={"Software": None})


class _Bench:
    """The data, and short trainings on it."""

    def __init__(self, folder: Path, options: Options) -> None:
        from cairn.chat.format import load_format
        from cairn.data.encode import Counters, encode_rows
        from cairn.data.pebble import Sizes, generate
        from cairn.tokenizer.load import Tokenizer
        from cairn.tokenizer.train import TokenizerConfig, train_tokenizer

        self.folder, self.options = folder, options
        rows = generate(1, Sizes(scale=0.05)).pretrain
        train_tokenizer((r["text"] for r in rows), TokenizerConfig(vocab_size=512), load_format("k2"), folder / "tokenizer")
        self.tokenizer = Tokenizer.load(folder / "tokenizer")
        limits: dict[str, Any] = {"max_length": 128, "overlong": "truncate", "objective": "language_model"}
        self.documents = list(encode_rows(rows, None, self.tokenizer, counters=Counters(), **limits))
        self.count = 0

    def trainer(self, kind: Kind, mup: bool, width: int, base: int, rate: float, steps: int) -> Any:
        """A fresh training."""
        from cairn.data.batches import PackedStream
        from cairn.ledger.progress import Silent
        from cairn.model.config import ModelConfig
        from cairn.model.load import new_model
        from cairn.train.config import Training
        from cairn.train.loop import Trainer

        sizes = {"hidden_size": width, "layers": 2, "heads": width // 16, "intermediate_size": 2 * width, "context": 128, "tied": False}
        # 0.1 at the base width is about 1 / sqrt(64): there, both settings are the same model.
        start = {"initializer_range": 0.1, "embedding_range": 1.0, "mup": {"base_width": base} if mup else None}
        shape = ModelConfig.model_validate({**sizes, **start})
        model = new_model(shape, vocab_size=self.tokenizer.vocab_size, bos_id=None, eos_id=0, pad_id=None, seed=1)
        optimizer = {"kind": kind, "lr": rate, **({"adam_lr": 0.01} if kind == "muon" else {})}
        schedule = {"kind": "linear", "warmup": 0.1}
        settings = {"steps": steps, "sequence_length": 128, "batch_sequences": 8, "objective": "language_model"}
        config = Training.model_validate({**settings, "optimizer": optimizer, "schedule": schedule})
        self.count += 1
        place = self.folder / str(self.count)
        place.mkdir()
        return Trainer(model, PackedStream([self.documents], [1.0], 1, 128, 8), config, place, Silent())

    def slopes(self, kind: Kind, mup: bool) -> dict[str, dict[int, float]]:
        """{what: {width: root mean square of its change}} after a few steps at a middling rate."""
        import torch

        say(f"{name(kind, mup)}: activations")
        found: dict[str, dict[int, float]] = {}
        rates = self.options.adamw_rates if kind == "adamw" else self.options.muon_rates
        for width in self.options.check_widths:
            trainer = self.trainer(kind, mup, width, self.options.check_widths[0], rates[len(rates) // 2], 10 * self.options.check_steps)
            ids = torch.as_tensor(self.documents[0].ids[:64], dtype=torch.long)
            look: Callable[[], dict[str, Any]] = lambda m=trainer.model, x=ids: _activations(m, x)  # noqa: E731
            before = look()
            for _ in range(self.options.check_steps):
                trainer.one_step()
            after = look()
            for what, h in after.items():
                found.setdefault(what, {})[width] = float((h - before[what]).square().mean().sqrt())
        return found

    def losses(self, kind: Kind, mup: bool) -> dict[int, dict[float, float]]:
        """{width: {rate: mean loss of the last quarter}}."""
        from cairn.errors import UserError

        rates = self.options.adamw_rates if kind == "adamw" else self.options.muon_rates
        found: dict[int, dict[float, float]] = {}
        for width in self.options.widths:
            for rate in rates:
                trainer = self.trainer(kind, mup, width, self.options.widths[0], rate, self.options.steps)
                try:
                    lines = [trainer.one_step()["loss"] for _ in range(self.options.steps)]
                except UserError:
                    lines = [math.inf]  # the run has blown up
                tail = lines[-max(1, len(lines) // 4) :]
                found.setdefault(width, {})[rate] = sum(tail) / len(tail)
            say(f"{name(kind, mup)}, width {width}: " + ", ".join(f"{r:g}: {loss:.3f}" for r, loss in found[width].items()))
        return found


def _activations(model: Any, ids: Any) -> dict[str, Any]:
    """What each layer gives for one document, and the logits."""
    import torch

    implementation = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        out = model(input_ids=ids[None], use_cache=False, output_hidden_states=True)
    model.set_attn_implementation(implementation)
    layers = {f"layer {i}": h for i, h in enumerate(out.hidden_states[1:], 1)}
    return {**layers, "logits": out.logits}
