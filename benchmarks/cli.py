"""How long the command line takes to answer where there is nothing to compute: the help, a mistake, a list; Python's own start beside it.

Each is the median of several processes, the start of Python included: it is what whoever types the command waits for. The
second run of a recipe, which must say in under 2 s that there is nothing to do, is measured by `demo`, where there is a store.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from pydantic import Field

from cairn.config import Config
from cairn.pipeline.bench import Row, call_cairn, row, workspace

MUST = "< 0.3"
"""Seconds until the help is there."""


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for the logs and the store, kept afterwards; None: a temporary one."""
    times: int = Field(11, ge=1)
    """Processes of each command; the median counts."""


def run(options: Options) -> list[Row]:
    """Measure. The first process of each command is not counted: it reads the files from the disk."""
    with workspace(options.store, "cli") as place, open(place.folder / "cli.log", "w", encoding="utf-8") as log:

        def seconds(words: list[str], status: int = 0) -> float:
            taken = [call_cairn(words, log=log, fine=(status,)).seconds for _ in range(options.times + 1)]
            return round(statistics.median(taken[1:]), 3)

        store = ["--store", str(place.folder / "store")]
        return [
            row("cairn --help, wall time in s", seconds(["--help"]), MUST),
            row("cairn with an unknown command, wall time in s", seconds(["vefiry"], status=2), MUST),
            row("cairn run --help, wall time in s", seconds(["run", "--help"])),
            row("cairn list of an empty store, wall time in s", seconds(["list", *store])),
            row("python that does nothing, wall time in s", round(bare_python(options.times), 3)),
        ]


def bare_python(times: int) -> float:
    """Seconds that Python takes to start and end, the median."""
    taken = []
    for _ in range(times + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])
