"""Checkpoints of a training run: weights, optimiser state and place in the data. Knows files; not how a step is made.

A checkpoint is a folder `step-000100` that is written aside, synced and renamed: it is whole or it is not there. Tensors are
safetensors; the place in the data is a small JSON. The fp32 masters are stored, so nothing is rounded on the way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from cairn.errors import UserError
from cairn.ledger.store import sync_tree

_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class State:
    """What a run needs to go on: masters and optimiser by name, and a JSON-like place (step, data cursor)."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    place: dict[str, Any]


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def save(folder: Path, step: int, state: State) -> Path:
    """Write the checkpoint of `step` beneath `folder`."""
    final, aside = folder / name_of(step), folder / f".{name_of(step)}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({n: t.detach().contiguous() for n, t in state.weights.items()}, aside / "weights.safetensors")
    save_file({n: t.detach().contiguous() for n, t in state.optimizer.items()}, aside / "optimizer.safetensors")
    (aside / "place.json").write_text(json.dumps(state.place, sort_keys=True) + "\n", encoding="utf-8")
    sync_tree(aside)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(aside, final)
    return final


def load(folder: Path) -> State:
    """Read a checkpoint folder.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        place = json.loads((folder / "place.json").read_text(encoding="utf-8"))
        return State(load_file(folder / "weights.safetensors"), load_file(folder / "optimizer.safetensors"), place)
    except Exception as error:
        remedy = "delete it, and the run starts from an earlier one"
        raise UserError(f"cannot read the checkpoint: {error}", where=str(folder), remedy=remedy) from error


def steps_in(folder: Path) -> list[int]:
    """Steps of the whole checkpoints beneath `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)))


def retain(folder: Path, keep: int) -> None:
    """Delete all but the latest `keep` checkpoints (0: none is deleted), and whatever a kill left aside."""
    if not folder.is_dir():
        return
    for step in steps_in(folder)[: -keep if keep else 0]:
        shutil.rmtree(folder / name_of(step))
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)
