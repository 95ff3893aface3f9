"""What the tests of the shipped recipes share: calling the command line in this process, and the size at which recipes run here."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

from cairn.cli.main import main

MODEL = ["hidden_size=48", "layers=2", "heads=4", "kv_heads=2", "intermediate_size=64"]
STEPS = ["tokens=null", "steps=4", "batch_sequences=2", "checkpoints.every=1", "checkpoints.keep=0"]
"""A few steps, with a checkpoint after each."""
SMALL = ["tokenizer.vocab_size=600", *(f"base.model.{m}" for m in MODEL), *(f"{stage}.{s}" for stage in ("base", "chat") for s in STEPS)]
GHOST = ["dialogues=12", "turns=[2, 2]", "unfinished=keep", "sampling.max_new_tokens=6"]
REWARDED = ["steps=2", "rollouts.prompts=2", "rollouts.answers=2", "rollouts.max_new_tokens=6"]
"""Fewer rounds than those after which a training without any reward is given up."""
BESIDE = [*(f"preferred.{s}" for s in ("steps=2", "batch_sequences=2")), *(f"rewarded.{s}" for s in REWARDED)]
PEBBLE = [*SMALL, *(f"ghost.{s}" for s in GHOST), *(f"steady.{s}" for s in STEPS), *BESIDE]
"""Of the recipe pebble; a model this small ends no answer by itself."""


def cairn(*words: str, status: int = 0) -> tuple[str, str]:
    """Call `cairn`, which must end with `status`: (standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = main(list(words))
    assert ended == status, f"cairn {' '.join(words)} ended with {ended}:\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue(), err.getvalue()


def cairn_json(*words: str, status: int = 0) -> dict[str, Any]:
    """The one object that `cairn … --json` prints."""
    value = json.loads(cairn(*words, "--json", status=status)[0])
    assert isinstance(value, dict)
    return value


def sets(*overrides: str) -> list[str]:
    """The overrides as options."""
    return [word for override in overrides for word in ("--set", override)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def shared_data() -> Path:
    """Where the shared data lie, if they do."""
    return Path(os.environ.get("CAIRN_SHARED") or Path(__file__).parents[2].parent / "shared" / "data")
