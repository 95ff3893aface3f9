"""`kill -9` at random instants of a small variant of the built-in recipe, then run again: is every stage's digest the undisturbed one?

A killed process is not a power cut: what the process had handed to the system survives. Syncing is tested elsewhere, by order.
The instants are a function of the seed as shares of the run's time; which byte they meet is up to the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from cairn.config import Config
from cairn.errors import UserError
from cairn.ledger.seeds import uniform
from cairn.ledger.store import Store
from cairn.pipeline.bench import Row, Workspace, call_cairn, command_line, row, say, workspace
from cairn.pipeline.verify import verify_folder

BUDGET = [
    "corpus.scale=0.05",
    "base.tokens=65536", "base.checkpoints.every=6", "base.checkpoints.resume_seconds=1",
    "chat.tokens=131072", "chat.checkpoints.every=10", "chat.checkpoints.resume_seconds=1",
    "ghost.dialogues=60", "ghost.unfinished=keep", "ghost.sampling.max_new_tokens=16",
    "steady.tokens=32768", "steady.checkpoints.every=6", "steady.checkpoints.resume_seconds=1",
    "preferred.steps=6", "preferred.batch_sequences=2",
    # Fewer rounds than those after which a training without any reward is given up: a model this small earns none.
    "rewarded.steps=3", "rewarded.rollouts.prompts=4", "rewarded.rollouts.answers=4", "rewarded.rollouts.max_new_tokens=8",
]  # fmt: skip
"""Less of everything, and resume points often enough that kills meet them being written."""

TRIES = 5
"""How often an instant is tried again that came after the run's end, because the machine had become faster."""


class Options(Config):
    """How it is measured."""

    store: Path | None = None
    """A new or empty folder for the stores, kept afterwards; None: a temporary one."""
    times: int = Field(20, ge=1)
    """How many runs are killed."""
    seed: int = 0
    """What the instants are drawn from."""
    recipe: str = "pebble"
    """What is run: a built-in recipe or the path of one."""
    budget: list[str] = BUDGET
    """The overrides that make it small, as `cairn run --set` takes them."""


@dataclass(frozen=True)
class Kill:
    """One run that was killed and run again."""

    number: int
    after: float
    """Seconds from its start to the kill."""
    spot: str
    """Where the kill met it: "in chat", "before base", "after the last stage"."""
    resumed: bool
    """Whether a stage went on from a point in its middle."""
    differs: list[str]
    """The stages whose digest is not the undisturbed run's, or whose files are not the record's."""


def run(options: Options) -> list[Row]:
    """Measure."""
    with workspace(options.store, "faults") as place:
        say("undisturbed run, for the digests to compare with")
        reference = place.folder / "undisturbed"
        words = _words(options, reference)
        with _log(reference) as log:
            done = call_cairn(words, log=log)
        stages = json.loads(done.out)["stages"]
        say(f"{len(stages)} stages in {done.seconds:.1f} s")
        kills, seconds = [], done.seconds
        for number in range(options.times):
            kill, seconds = _one(number, options, place, stages, seconds)
            say(f"{number + 1} of {options.times}: killed after {kill.after:.1f} s, {kill.spot}: {verdict(kill)}")
            kills.append(kill)
    return kill_rows(kills, stages, done.seconds)


def _one(number: int, options: Options, place: Workspace, stages: list[dict[str, Any]], seconds: float) -> tuple[Kill, float]:
    """Kill one run, run it again, compare; gives the kill, and the time that an undisturbed run takes as far as is known."""
    share = 0.05 + 0.9 * uniform(options.seed, "faults", number)
    folder = place.folder / f"kill-{number + 1}"
    for _ in range(TRIES):
        after, ended = kill_after(_words(options, folder), share * seconds, folder)
        if not ended:
            break
        seconds = after
        shutil.rmtree(folder)
    else:
        raise UserError("the run ends before it can be killed", where=str(folder), remedy="give it a larger budget")
    store = Store(folder)
    spot = spot_of(store, stages)
    with _log(folder) as log:
        again = json.loads(call_cairn(_words(options, folder), log=log).out)["stages"]
    notes = (folder.with_suffix(".log")).read_text(encoding="utf-8", errors="replace")
    kill = Kill(number + 1, after, spot, "goes on from step" in notes, differing(stages, again, store))
    if kill.differs:
        place.keep = True
    elif options.store is None:
        shutil.rmtree(folder)
    return kill, seconds


def _words(options: Options, store: Path) -> list[str]:
    return ["run", options.recipe, "--store", str(store), "--json", *(word for text in options.budget for word in ("--set", text))]


def _log(folder: Path) -> Any:
    return open(folder.with_suffix(".log"), "w", encoding="utf-8")


def kill_after(words: list[str], seconds: float, folder: Path) -> tuple[float, bool]:
    """Start `cairn` in a process group of its own and kill the group after `seconds`.

    Returns:
        how long it lived, and whether it had ended by itself before.

    Raises:
        UserError: it ended with an error of its own.
    """
    began = time.perf_counter()
    with open(folder.with_suffix(".killed.log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(command_line(words), stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also on Ctrl-C, which does not reach a group of its own. The process is not reaped before, so the group is still its.
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lived = time.perf_counter() - began
    if process.returncode not in (0, -signal.SIGKILL):
        what = f"the run ended with status {process.returncode} before it was killed"
        raise UserError(what, where=log.name, remedy="its own message is in that file")
    return lived, process.returncode == 0


def spot_of(store: Store, stages: list[dict[str, Any]]) -> str:
    """Where a killed run stood, out of what it left in its store."""
    for stage in stages:
        if (store.artifacts / stage["key"]).is_dir():
            continue
        return f"in {stage['name']}" if (store.drafts / stage["key"]).is_dir() else f"before {stage['name']}"
    return "after the last stage"


def differing(reference: list[dict[str, Any]], found: list[dict[str, Any]], store: Store) -> list[str]:
    """The stages whose recorded digest differs, or whose files are not what their record says.

    Raises:
        UserError: the keys differ, so that it is not the same run at all.
    """
    if [stage["key"] for stage in found] != [stage["key"] for stage in reference]:
        what = "the stages' keys changed in the midst of the measurement: code, recipe or environment are not what they were"
        raise UserError(what, where=str(store.root), remedy="measure in a clone that nobody edits")
    digests = {stage["name"]: stage["digest"] for stage in found}
    return [
        stage["name"]
        for stage in reference
        if digests.get(stage["name"]) != stage["digest"] or not verify_folder(store.artifacts / stage["key"]).ok
    ]


def verdict(kill: Kill) -> str:
    """One kill's outcome in words."""
    went = "went on in the middle of a stage, " if kill.resumed else ""
    return went + (f"DIFFERENT: {', '.join(kill.differs)}" if kill.differs else "identical")


def kill_rows(kills: list[Kill], stages: list[dict[str, Any]], seconds: float) -> list[Row]:
    """The number that counts, then every kill, then what shows that they met something."""
    whole = sum(not k.differs for k in kills)
    rows = [row(f"of {len(kills)} killed runs, all digests identical after another run", whole, f"== {len(kills)}")]
    for kill in kills:
        same = len(stages) - len(kill.differs)
        rows.append(row(f"kill {kill.number} after {kill.after:.1f} s, {kill.spot}: stages identical", same, f"== {len(stages)}"))
    spots = dict.fromkeys(f"{word} {stage['name']}" for stage in stages for word in ("before", "in"))
    for spot in [*spots, "after the last stage"]:
        count = sum(k.spot == spot for k in kills)
        if count:
            rows.append(row(f"kills that came {spot}", count))
    rows.append(row("runs that went on in the middle of a stage", sum(k.resumed for k in kills)))
    rows.append(row("undisturbed run, wall time in s", round(seconds, 1)))
    return rows
