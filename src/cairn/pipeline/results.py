"""Results for people: a table of scores with intervals and bars, and sample dialogues. Knows results as JSON-like values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cairn.report.tables import is_share, show_interval, show_value

SHOWN = ("functions", "arithmetic", "korean", "facts")
"""The skills whose dialogues are shown first, where a suite has them."""


def bar(value: float, width: int = 20) -> str:
    """A share as a bar; only 1 fills it, so that 99.9 % does not look like all."""
    filled = width if value >= 1 else min(width - 1, int(value * width + 0.5)) if width else 0
    return "█" * filled + "░" * (width - filled)


def scores_table(rows: Sequence[dict[str, Any]], title: str = "What the model can do (held-out questions)") -> Any:
    """One model's results as a rich table."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("suite", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("n", "score", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        metric = row["metric"]
        picture = bar(row["value"]) if is_share(metric) else ""
        interval = show_interval(metric, row["low"], row["high"])
        table.add_row(row["suite"], metric, f"{row['n']:,}", show_value(metric, row["value"]), interval, picture)
    return table


def models_table(
    models: Sequence[str], rows: Sequence[dict[str, Any]], differences: dict[str, list[str]] | None = None, title: str | None = None
) -> Any:
    """Several models side by side.

    Args:
        models: their names.
        rows: `{"suite", "metric", "n", "values"}`, a value for each model.
        differences: for a row's suite, how each model after the first differs from it.
        title: what stands above it.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("suite", "metric"):
        table.add_column(name, no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for number, name in enumerate(models):
        table.add_column(name, justify="right")
        if number and differences:
            table.add_column(f"against {models[0]}", justify="right")
    for row in rows:
        cells = [row["suite"], row["metric"], f"{row['n']:,}"]
        for number, value in enumerate(row["values"]):
            cells.append(f"{show_value(row['metric'], value['value'])} ({show_interval(row['metric'], value['low'], value['high'])})")
            if number and differences:
                cells.append(differences.get(row["suite"], [""] * len(models))[number - 1])
        table.add_row(*cells)
    return table


def difference_text(difference: tuple[float, float, float]) -> str:
    """A difference of two shares with its interval, in points of a hundred; a star where the interval leaves out zero."""
    value, low, high = (100 * x for x in difference)
    star = " *" if low > 0 or high < 0 else ""
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}){star}"


def show_message(message: dict[str, Any]) -> str:
    """An answer for people: its words, and its calls as `name(argument=value)`."""
    parts = [message["content"].strip()] if (message.get("content") or "").strip() else []
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        arguments = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in function["arguments"].items())
        parts.append(f"→ {function['name']}({arguments})")
    return "\n".join(parts) or "(nothing)"


def choose_samples(samples: Sequence[dict[str, Any]], count: int = 3) -> list[dict[str, Any]]:
    """A few samples to show, right or wrong as they come: of each skill in `SHOWN` the first one that expects something, then others."""
    chosen: list[dict[str, Any]] = []
    skills = list(dict.fromkeys(s["skill"] for s in samples))
    for skill in [*(s for s in SHOWN if s in skills), *(s for s in skills if s not in SHOWN)]:
        chosen += [s for s in samples if s["skill"] == skill and s["expected"] not in (None, [], "")][:1]
    return chosen[:count]


def dialogues(folders: Sequence[Path], count: int = 3) -> list[Any]:
    """A few sample dialogues out of the folders of results, as rich renderables."""
    from rich.text import Text

    samples = []
    for folder in folders:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        files = dict.fromkeys(row["samples"] for row in results["rows"] if is_share(row["metric"]))
        for file in files:
            samples += [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]
    shown = []
    for sample in choose_samples(samples, count):
        text = Text()
        mark, style = ("✓", "green") if sample["correct"] else ("✗", "red")
        text.append(f"\n{mark} {sample['skill'] or sample['id']}\n", style=style)
        text.append("  user       ", style="dim").append(sample["question"].replace("\n", "\n             ") + "\n")
        text.append("  assistant  ", style="dim").append(show_message(sample["message"]).replace("\n", "\n             "))
        shown.append(text)
    return shown
