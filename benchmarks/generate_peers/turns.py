"""One competitor as a process that generates when asked to: the clock, the replies, the work. Knows no engine and not cairn.

A script is started as `python script.py job.json` and talks in lines of JSON. It replies once when it is ready; each line `go WORK
SECONDS` lets it do a work as often as fits into the time, once at least; the reply says how many wanted tokens that were.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START = time.perf_counter()
# Libraries print on standard output: replies get a pipe of their own, and such prints go to the log.
_PIPE = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

Prompts = list[tuple[list[int], int]]
"""Each request's prompt, and how many tokens it wants."""


def reply(**what: Any) -> None:
    """One line to whoever started this process."""
    _PIPE.write(json.dumps(what) + "\n")
    _PIPE.flush()


def job() -> dict[str, Any]:
    """What this process was told to do."""
    told: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return told


def missing(name: str) -> None:
    """Tell that a library is not installed, and end."""
    reply(missing=f"{name} is not installed")
    sys.exit(0)


def serve(
    works: dict[str, Prompts], run: Callable[[str, Prompts], list[list[int]]], extra: dict[str, Callable[[], dict[str, Any]]]
) -> None:
    """Answer until the end. `run` gives every request's tokens; those beyond what it wants do not count.

    The first answers of each work are in a `first` reply, before any turn: they compile, fill caches, and can be compared.
    """
    reply(ready=True, seconds=time.perf_counter() - START)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "stop":
            return
        if words[0] in extra:
            reply(**extra[words[0]]())
            continue
        given = works[words[1]]
        if words[0] == "first":
            begun = time.perf_counter()
            answers = run(words[1], given)
            reply(seconds=time.perf_counter() - begun, answers=[ids[:want] for ids, (_, want) in zip(answers, given, strict=True)])
            continue
        done, begun, used = 0, time.perf_counter(), time.process_time()
        while not done or time.perf_counter() - begun < float(words[2]):
            for ids, (_, want) in zip(run(words[1], given), given, strict=True):
                if len(ids) < want:
                    raise RuntimeError(f"{len(ids)} tokens came of {want}")
                done += want
        reply(tokens=done, seconds=time.perf_counter() - begun, processor=time.process_time() - used)
