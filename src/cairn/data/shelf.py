"""Encoded documents in files, for processes that read what another one has prepared. Knows arrays only.

A source is a few arrays: the ids and the masks of all documents end to end, where each document ends, and the lengths and margins of
answers. They are mapped, not read: every process of a machine shares one copy in the page cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cairn.data.encode import Encoded
from cairn.errors import UserError

_NAMES = ("ids", "mask", "ends", "answers", "counts", "margins")


def put(folder: Path, sources: Sequence[Sequence[Encoded]]) -> None:
    """Write the documents of each source; what lay in `folder` before is replaced."""
    aside = folder.with_name(f".{folder.name}")
    for old in (aside, folder):
        shutil.rmtree(old, ignore_errors=True)
    for number, documents in enumerate(sources):
        place = aside / str(number)
        place.mkdir(parents=True)
        ids = np.concatenate([d.ids for d in documents]) if documents else np.zeros(0, np.int32)
        mask = np.concatenate([d.mask for d in documents]) if documents else np.zeros(0, np.uint8)
        ends = np.cumsum([len(d) for d in documents], dtype=np.int64)
        answers = np.asarray([n for d in documents for n in d.answers], dtype=np.int64)
        counts = np.asarray([len(d.answers) for d in documents], dtype=np.int64)
        margins = np.asarray([d.margin for d in documents], dtype=np.float64)
        for name, array in zip(_NAMES, (ids, mask, ends, answers, counts, margins), strict=True):
            np.save(place / f"{name}.npy", array)
    os.rename(aside, folder)


def take(folder: Path) -> list[list[Encoded]]:
    """The documents of each source, as views of the files.

    Raises:
        UserError: they cannot be read here.
    """
    try:
        places = sorted(folder.iterdir(), key=lambda p: int(p.name))
        arrays = [[np.load(place / f"{name}.npy", mmap_mode="r") for name in _NAMES] for place in places]
    except (OSError, ValueError) as error:
        remedy = "the store must lie on a file system that all machines of the run share"
        raise UserError(f"the rows that rank 0 prepared cannot be read: {error}", where=str(folder), remedy=remedy) from error
    found = []
    for ids, mask, ends, answers, counts, margins in arrays:
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
        places, lengths = np.cumsum(counts) - counts, answers.tolist()
        told = zip(starts.tolist(), ends.tolist(), places.tolist(), counts.tolist(), margins.tolist(), strict=True)
        found.append([Encoded(ids[a:b], mask[a:b], tuple(lengths[at : at + n]), margin) for a, b, at, n, margin in told])
    return found
