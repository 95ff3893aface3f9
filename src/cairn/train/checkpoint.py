"""Checkpoints of a training run: weights, optimiser state and place in the data. Knows files; not how a step is made.

A checkpoint is a folder `step-000100` that is written aside, synced and renamed: it is whole or it is not there. Tensors are
safetensors; the place in the data is a small JSON. The fp32 masters are stored, so nothing is rounded on the way.

`Writer` writes in the background. Weights and optimiser state move only inside an optimiser's step, so the thread reads the live
tensors while the next forward and backward run, and no copy of the state is held. What it has not read when the weights are about
to move is copied then (`Writer.release`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cairn.errors import UserError
from cairn.ledger.store import show_bytes, sync_folder, sync_tree
from cairn.model.tensorfile import header

_NAME = re.compile(r"step-(\d{6,})")
_PIECE = 1 << 23
"""Bytes that are read from a live tensor at once: their copy holds up the training for a few milliseconds at most."""
_SHARE = 0.01
"""Share of the training's time that resume points may take by `Writer.cost`. By the clock they take up to 1.4 times that: under 2 %."""


@dataclass(frozen=True)
class State:
    """What a run needs to go on: masters and optimiser by name, and a JSON-like place (step, data cursor)."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    place: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Size of its tensors."""
        return sum(t.numel() * t.element_size() for part in (self.weights, self.optimizer) for t in part.values())


def name_of(step: int) -> str:
    return f"step-{step:06d}"


class _File:
    """One safetensors file to be written out of live tensors."""

    def __init__(self, name: str, tensors: dict[str, Tensor]) -> None:
        self.name = name
        self.header, order = header({key: (t.dtype, t.shape) for key, t in tensors.items()})
        # Only memory of this machine that lies in one piece can be read while training goes on; all else is copied at once.
        self.live = [tensors[key].device.type == "cpu" and tensors[key].is_contiguous() for key in order]
        self.data = [_bytes_of(tensors[key]) for key in order]


def _bytes_of(tensor: Tensor) -> Tensor:
    """The tensor's bytes; a view where it lies in one piece on this machine."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


class _Write:
    """One checkpoint on its way to the disk. `release` and the thread that runs `write` share its tensors under a lock."""

    def __init__(self, folder: Path, step: int, state: State) -> None:
        self.final, self.aside = folder / name_of(step), folder / f".{name_of(step)}"
        self.files = [_File("weights.safetensors", state.weights), _File("optimizer.safetensors", state.optimizer)]
        self.place = json.dumps(state.place, sort_keys=True) + "\n"
        self.lock, self.at = threading.Lock(), (0, 0)

    def write(self, log: Path | None = None) -> Path:
        """Write aside, sync, rename. `log` is a file that must be on the disk before the checkpoint is."""
        try:
            shutil.rmtree(self.aside, ignore_errors=True)
            self.aside.mkdir(parents=True)
            for number, file in enumerate(self.files):
                # Unbuffered: a piece goes straight to the system, which takes it without the interpreter's lock.
                with open(self.aside / file.name, "wb", buffering=0) as out:
                    _write_all(out, file.header)
                    for piece in self._pieces(number):
                        _write_all(out, piece)
            (self.aside / "place.json").write_text(self.place, encoding="utf-8")
            if log is not None and log.exists():
                _sync_file(log)
            sync_tree(self.aside)
            shutil.rmtree(self.final, ignore_errors=True)
            os.rename(self.aside, self.final)
            sync_folder(self.final.parent)
        except BaseException:
            # A full disk is full of this very half checkpoint: what comes after needs the room.
            shutil.rmtree(self.aside, ignore_errors=True)
            raise
        return self.final

    def _pieces(self, number: int) -> Iterator[memoryview]:
        """The file's bytes; each piece is good until the next one is asked for."""
        file, buffer = self.files[number], np.empty(_PIECE, np.uint8)
        for i in range(len(file.data)):
            for start in range(0, file.data[i].numel(), _PIECE):
                with self.lock:
                    self.at = (number, i)
                    # numpy copies on this one thread; torch would start a team of threads beside those that compute.
                    piece = file.data[i][start : start + _PIECE].numpy()
                    np.copyto(buffer[: len(piece)], piece)
                yield buffer[: len(piece)].data
            with self.lock:
                # Read to its end: a later `release` has nothing to copy here, and a copy is let go.
                self.at, file.data[i] = (number, i + 1), file.data[i][:0]

    def release(self) -> None:
        """Copy what is not read yet; afterwards the live tensors may move."""
        with self.lock:
            first, begun = self.at
            for number, file in enumerate(self.files[first:], first):
                for i in range(begun if number == first else 0, len(file.data)):
                    if file.live[i]:
                        file.data[i], file.live[i] = file.data[i].clone(), False


def _write_all(out: IO[bytes], data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[out.write(view) :]


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def save(folder: Path, step: int, state: State) -> Path:
    """Write the checkpoint of `step` beneath `folder`, and come back when it stands on the disk."""
    return _Write(folder, step, state).write()


class Writer:
    """Writes checkpoints in a thread of its own, one at a time.

    Args:
        log: a file whose lines must be on the disk before a checkpoint that was saved after them is (the metrics).
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.cost = 0.0
        """Seconds that the latest whole checkpoint took from the training: what the caller waited, and the thread's time on a core."""
        self._thread: threading.Thread | None = None
        self._write: _Write | None = None
        self._error: BaseException | None = None
        self._waited = 0.0

    def busy(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._thread is not None and self._thread.is_alive()

    def rest(self, seconds: float) -> float:
        """The time to leave between two resume points: `seconds`, or longer where they would take more than their share of the training."""
        return max(seconds, self.cost / _SHARE)

    def save(self, folder: Path, step: int, state: State, keep: int) -> None:
        """Begin to write; a checkpoint that is still on its way is waited for. The latest `keep` stay, as with `retain`.

        Call `release` before any of the state's tensors moves.

        Raises:
            UserError: the disk has no room for it.
            OSError: an earlier write failed.
        """
        began = time.monotonic()
        self.close()
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if state.bytes > free:
            raise UserError(
                f"the disk has no room for the checkpoint of step {step}: it takes {show_bytes(state.bytes)}, {show_bytes(free)} are free",
                where=str(folder), remedy="free some space and run again: training goes on from the last whole checkpoint",
            )  # fmt: skip
        self._write = _Write(folder, step, state)
        self._thread = threading.Thread(target=self._run, args=(self._write, keep), name=f"checkpoint {step}")
        self._waited = time.monotonic() - began
        self._thread.start()

    def _run(self, write: _Write, keep: int) -> None:
        try:
            write.write(self.log)
            retain(write.final.parent, keep)
            self.cost = self._waited + time.thread_time()
        except BaseException as error:  # whatever it is: the training must hear of it
            self._error = error

    def release(self) -> None:
        """Call before the weights move: copies what the thread has not read yet."""
        if self._write is not None:
            began = time.monotonic()
            self._write.release()
            self._write = None
            self._waited += time.monotonic() - began

    def check(self) -> None:
        """Raise what an earlier write failed with."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for the checkpoint that is on its way, and `check`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = self._write = None
        self.check()


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
        _delete(folder / name_of(step))
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)


def _delete(checkpoint: Path) -> None:
    # Renamed first: a kill in the middle of the deletion would leave a folder that looks whole and is not.
    aside = checkpoint.with_name(f".{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(checkpoint, aside)
    shutil.rmtree(aside)


def planned_bytes(folder: Path, one: int, kept: int) -> int:
    """Disk that a run's checkpoints will still take: `kept` that stay, the resume point, and the next one while it is written.

    Args:
        folder: the run's folder; what stands there already is taken off.
        one: size of one checkpoint, in bytes.
        kept: how many stay.
    """
    have = 0
    for place, most in (("checkpoints", kept), ("resume", 1)):
        have += min(most, len(steps_in(folder / place)))
    return one * (kept + 2 - have)


@contextlib.contextmanager
def closing(writer: Writer) -> Iterator[Writer]:
    """Wait for the writer at the end; an error of the body is not hidden by one of the writer."""
    try:
        yield writer
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        raise
    writer.close()
