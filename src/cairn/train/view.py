"""The live view of a training on a terminal. Knows the lines of metrics and speed; draws, and computes nothing that is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cairn.ledger.progress import show_number, show_seconds
from cairn.ledger.store import show_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48
"""Signs of the loss curve."""
TOP = 5
"""Sources that are shown: those with the most tokens."""


class Curve:
    """A curve of any length in at most `WIDTH` points: when they are full, neighbours become their mean."""

    def __init__(self) -> None:
        self.sums: list[float] = []
        self.counts: list[int] = []
        self.size = 1

    def add(self, value: float) -> None:
        """Append a value."""
        if self.counts and self.counts[-1] < self.size:
            self.sums[-1] += value
            self.counts[-1] += 1
            return
        if len(self.sums) == WIDTH:
            self.size *= 2
            self.sums = [a + b for a, b in zip(self.sums[::2], self.sums[1::2], strict=True)]
            self.counts = [a + b for a, b in zip(self.counts[::2], self.counts[1::2], strict=True)]
        self.sums.append(value)
        self.counts.append(1)

    def text(self) -> str:
        """The curve as one line of bars, highest value the tallest."""
        values = [s / n for s, n in zip(self.sums, self.counts, strict=True)]
        if not values:
            return ""
        low, high = min(values), max(values)
        step = (high - low) / (len(BARS) - 1) or 1.0
        return "".join(BARS[round((v - low) / step)] for v in values)


class View:
    """The latest figures. Drawn by the display's own thread a few times a second, never by the step."""

    def __init__(self, before: Iterable[float] = ()) -> None:
        self.curve = Curve()
        for loss in before:
            self.curve.add(loss)
        self.line: dict[str, Any] | None = None
        self.speed: dict[str, Any] = {}
        self.sources: dict[str, dict[str, float]] = {}

    def add(self, line: dict[str, Any], speed: dict[str, Any]) -> None:
        """Take in a step."""
        self.curve.add(line["loss"])
        # A new dictionary each time: the drawing thread may be going through the old one.
        sources = dict(self.sources)
        for name, found in line.get("sources", {}).items():
            old = sources.get(name, {"tokens": 0.0})
            sources[name] = {**old, **found, "tokens": 0.95 * old["tokens"] + found["tokens"]}
        self.sources, self.speed, self.line = sources, speed, line

    def __rich__(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        line, speed = self.line, self.speed
        if line is None:
            return grid
        share = line["supervised_tokens"] / max(1, line["tokens"])
        grid.add_row("  loss", Text(f"{line['loss']:.4f}", "bold"), Text(self.curve.text(), "cyan"))
        figures = [
            f"norm {show_number(line['grad_norm'])}", f"rate {show_number(line['lr'])}",
            f"{speed['tokens_per_second']:,.0f} tokens/s", f"{share:.0%} supervised", f"MFU {speed['mfu']:.0%}",
            show_bytes(speed["memory_bytes"]), f"{show_seconds(speed['eta_seconds'])} left",
        ]  # fmt: skip
        grid.add_row("  step", str(line["step"]), " · ".join(figures))
        whole = sum(s["tokens"] for s in self.sources.values())
        top = sorted(self.sources.items(), key=lambda item: (-item[1]["tokens"], item[0]))[:TOP]
        # By name: a list in the order of shares would dance.
        for name, found in sorted(top) if len(self.sources) > 1 else []:
            loss = f"{found['loss']:.4f}" if "loss" in found else ""
            grid.add_row(Text(f"  {name}", "dim"), loss, Text(f"{found['tokens'] / whole:.0%} of tokens", "dim"))
        return grid
