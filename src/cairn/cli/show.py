"""What the verbs share: options, consoles, JSON and figures for people. Knows no verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cairn.ledger.store import Store

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
StoreDir = Annotated[
    Path | None, typer.Option("--store", help="The store's folder; else CAIRN_STORE, else ./cairn-store.", show_default=False)
]


def open_store(folder: Path | None) -> Store:
    """The store that the option `--store`, the variable CAIRN_STORE or the current folder gives."""
    from cairn.ledger.store import Store, default_root

    return Store(folder if folder is not None else default_root())


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        # A terminal of another encoding, or a lone surrogate in the value: escapes are JSON all the same.
        text = json.dumps(value, ensure_ascii=True, indent=2, allow_nan=False)
    print(text)


def out() -> Console:
    """A console on standard output. Made anew each time, for the stream may have been replaced."""
    return _console(False)


def err() -> Console:
    """A console on standard error: progress, notes and errors."""
    return _console(True)


def _console(stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        # Rich folds at 80 columns where it sees no terminal, which would break paths and tables in pipes.
        console = Console(stderr=stderr, highlight=False, width=200)
    return console


def show_count(value: float | None) -> str:
    """A count for people: 1.2 M; unknown is a dash."""
    if value is None:
        return "–"
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    for unit in ("k", "M", "G", "T", "P"):
        value /= 1000
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
    return f"{value / 1000:.3g} E"
