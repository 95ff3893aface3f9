"""How long work tells where it stands: a live bar on a terminal, plain lines elsewhere. Knows nothing of the work.

What is shown never reaches a record: figures here may depend on the clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """What a stage reports to."""

    def start(self, total: int | None = None, unit: str = "", done: int = 0) -> None:
        """Begin a count up to `total` (None: unknown) of `unit`s, `done` of them by an earlier run. May be called again for a next part."""

    def update(self, done: int, **figures: float | int | str) -> None:
        """`done` of the total are done; figures such as loss= or tokens_per_second= are shown beside it."""

    def show(self, view: Any | None) -> None:
        """Draw `view`, anything that rich draws, beneath the bar of a terminal; None takes it away. Lines elsewhere do without."""

    def note(self, text: str) -> None:
        """One line to keep on the screen."""

    def close(self) -> None:
        """The work is over."""


class Silent:
    """Shows nothing: for tests and for replays."""

    def start(self, total: int | None = None, unit: str = "", done: int = 0) -> None:
        """Nothing."""

    def update(self, done: int, **figures: float | int | str) -> None:
        """Nothing."""

    def show(self, view: Any | None) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _Count:
    """Done, total, speed and time left of one count."""

    def __init__(self, total: int | None, unit: str, done: int, clock: Callable[[], float]) -> None:
        self.total, self.unit, self.clock = total, unit, clock
        # What an earlier run did must not count as speed.
        self.begun, self.first, self.done = clock(), done, done
        self.figures: dict[str, float | int | str] = {}

    def update(self, done: int, figures: dict[str, float | int | str]) -> None:
        self.done, self.figures = done, {**self.figures, **figures}

    def rate(self) -> float | None:
        seconds, count = self.clock() - self.begun, self.done - self.first
        return count / seconds if seconds > 0.2 and count > 0 else None

    def left(self) -> float | None:
        rate = self.rate()
        return (self.total - self.done) / rate if rate and self.total is not None else None

    def line(self, figures: bool = True) -> str:
        parts = [f"{self.done:,}/{self.total:,}" if self.total is not None else f"{self.done:,}"]
        if self.unit:
            parts[0] += f" {self.unit}"
        shown = self.figures if figures else {}
        parts += [f"{name.replace('_per_second', '/s').replace('_', ' ')} {show_number(value)}" for name, value in shown.items()]
        rate, left = self.rate(), self.left()
        if rate is not None and not any(name.endswith("_per_second") for name in self.figures):
            parts.append(f"{show_number(rate)} {self.unit or 'it'}/s")
        if left is not None and self.total != self.done:
            parts.append(f"{show_seconds(left)} left")
        return " · ".join(parts)


class Plain:
    """Plain lines, at most one in `every` seconds."""

    def __init__(
        self, title: str, stream: TextIO | None = None, *, every: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.title, self.stream, self.every, self.clock = title, stream or sys.stderr, every, clock
        self.count: _Count | None = None
        self.last = clock()
        self.shown: str | None = None

    def start(self, total: int | None = None, unit: str = "", done: int = 0) -> None:
        """Begin a count."""
        self._last_line()
        self.count, self.last, self.shown = _Count(total, unit, done, self.clock), self.clock(), None

    def update(self, done: int, **figures: float | int | str) -> None:
        """Show a line if the last one is old enough."""
        if self.count is None:
            self.start()
        assert self.count is not None
        self.count.update(done, figures)
        if self.clock() - self.last >= self.every:
            self.last = self.clock()
            self._say(self.count.line())

    def note(self, text: str) -> None:
        """Show a line now."""
        self._say(text)

    def show(self, view: Any | None) -> None:
        """Nothing: lines cannot be drawn over."""

    def close(self) -> None:
        """Show where the count ended, if it was shown at all or has figures."""
        self._last_line()
        self.count = None

    def _last_line(self) -> None:
        if self.count is not None and self.count.done and (self.count.figures or self.shown):
            line = self.count.line()
            if line != self.shown:
                self._say(line)

    def _say(self, line: str) -> None:
        self.shown = line
        print(f"{self.title}: {line}", file=self.stream, flush=True)


class Live:
    """A live bar with figures, speed and time left, for a terminal."""

    def __init__(self, title: str, console: Any) -> None:
        self.title, self.console = title, console
        self.bar: Any = None
        self.task: Any = None
        self.count: _Count | None = None
        self.view: Any = None

    def start(self, total: int | None = None, unit: str = "", done: int = 0) -> None:
        """Begin a count: the bar starts over."""
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._last_line()
        if self.bar is None:
            texts = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[line]}", markup=False))
            columns = (SpinnerColumn(), *texts, TimeElapsedColumn())
            self.bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=2)
            self.bar.get_renderables = self._renderables
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=total, line="")
        else:
            self.bar.reset(self.task, total=total, line="")
        self.count = _Count(total, unit, done, time.monotonic)

    def update(self, done: int, **figures: float | int | str) -> None:
        """Move the bar."""
        if self.count is None:
            self.start()
        assert self.count is not None
        self.count.update(done, figures)
        self.bar.update(self.task, completed=done, line=self.count.line(figures=self.view is None))

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(f"{self.title}: {text}", markup=False, highlight=False)

    def show(self, view: Any | None) -> None:
        """Draw it beneath the bar, which leaves the figures to it."""
        self.view = view

    def _renderables(self) -> Iterator[Any]:
        yield self.bar.make_tasks_table(self.bar.tasks)
        if self.view is not None:
            yield self.view

    def close(self) -> None:
        """Take the bar away; its last figures stay on the screen."""
        self._last_line()
        if self.bar is not None:
            self.bar.stop()
            self.bar = self.count = None

    def _last_line(self) -> None:
        if self.count is not None and self.count.figures:
            self.note(self.count.line())


def make_progress(title: str, stream: TextIO | None = None) -> Progress:
    """A live bar if `stream` (standard error unless given) is a terminal, plain lines otherwise."""
    stream = stream or sys.stderr
    if not stream.isatty():
        return Plain(title, stream)
    from rich.console import Console

    return Live(title, Console(file=stream))


def show_number(value: float | int | str) -> str:
    """A figure for people: thousands get separators, small numbers four digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def show_seconds(seconds: float) -> str:
    """A duration for people: 42 s, 3:07 min, 1:02 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 10 or whole == seconds else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
