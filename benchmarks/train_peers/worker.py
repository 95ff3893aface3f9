"""One competitor as a process that trains in turns: the clock, the replies, the rows, the memory. Knows no trainer and not cairn.

A script is started as `python script.py job.json` and talks in lines of JSON. After its warm-up steps (and whatever it compiles in
them) it replies once and waits. Each line `go SECONDS` on its standard input lets it train whole steps until so much time is over; the
reply says how many real tokens (no padding) that were. `stop` ends it, and the last reply holds its peak memory. While one waits
another trains, so that a machine that becomes slower does so for both.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

START = time.perf_counter()


class Stop(BaseException):
    """The turns are over. No Exception, so that no library catches it."""


@cache
def _replies() -> IO[str]:
    # Libraries print on standard output: replies get a pipe of their own, and such prints go to the log.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe


def reply(**what: Any) -> None:
    """One line to whoever started this process."""
    _replies().write(json.dumps(what) + "\n")
    _replies().flush()


def job() -> dict[str, Any]:
    """What this process was told to do. Called first, before a library prints."""
    _replies()
    told: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return told


def read_rows(path: str | Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, mask) of each row: the very same for every competitor."""
    with np.load(path) as stored:
        ends = np.cumsum(stored["lengths"])[:-1]
        return list(zip(np.split(stored["ids"], ends), np.split(stored["mask"], ends), strict=True))


def write_rows(path: str | Path, rows: list[tuple[Any, Any]]) -> None:
    """The file that `read_rows` reads."""
    ids, masks = ([np.asarray(one) for one in column] for column in zip(*rows, strict=True))
    lengths = np.array([len(one) for one in ids])
    np.savez(path, ids=np.concatenate(ids).astype(np.int32), mask=np.concatenate(masks).astype(np.uint8), lengths=lengths)


def peak_mb() -> float:
    """The most memory that this process ever had resident, in MB of 10^6 bytes, with everything it loaded."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024 / 1e6


class Turns:
    """The clock of a training. Its trainer calls `step` after every optimiser step.

    Args:
        warmup: steps before the first turn; compiling and first touches of memory fall into them.
        extra: further commands by name, which are answered with what the function returns.
    """

    def __init__(self, warmup: int, extra: dict[str, Callable[[], dict[str, Any]]] | None = None) -> None:
        self.warmup, self.extra = warmup, extra or {}
        self.steps = self.tokens = self.first_step = self.first_token = 0
        self.begun = self.seconds = 0.0
        self.first = time.perf_counter()

    def step(self, tokens: int) -> None:
        """A step is over.

        Args:
            tokens: real tokens of all steps so far.

        Raises:
            Stop: no more turns.
        """
        self.steps, self.tokens = self.steps + 1, tokens
        now = time.perf_counter()
        if self.steps < self.warmup:
            return
        if self.steps == self.warmup:
            reply(ready=True, loaded=round(self.first - START, 2), warmed=round(now - self.first, 2), steps=self.steps, tokens=tokens)
        elif now - self.begun < self.seconds:
            return
        else:
            self._report(now)
        self._wait()

    def end(self) -> None:
        """The last step of a bounded run was made: close the turn that it fell into."""
        self._report(time.perf_counter(), done=True)

    def _report(self, now: float, **more: Any) -> None:
        reply(tokens=self.tokens - self.first_token, seconds=now - self.begun, steps=self.steps - self.first_step, **more)

    def _wait(self) -> None:
        while True:
            words = sys.stdin.readline().split()
            if not words or words[0] == "stop":
                raise Stop
            if words[0] in self.extra:
                reply(**self.extra[words[0]]())
                continue
            self.seconds = float(words[1])
            self.first_step, self.first_token, self.begun = self.steps, self.tokens, time.perf_counter()
            return
