"""What a checkpoint from outside holds, read from the heads of its files. Loads no weights and imports no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

from cairn.errors import UserError
from cairn.model.folder import refuse_pickles

LARGEST_HEAD = 100_000_000
"""Bytes of a header at most, as in the safetensors library: a damaged length must not ask for all memory."""


def saved_parameters(folder: Path) -> int:
    """Parameters in a folder's safetensors files; a tied weight is stored once and counts once.

    Raises:
        UserError: no configuration, no safetensors, or a damaged header.
    """
    refuse_pickles(folder)
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        # Some folders hold the weights a second time in one file; the index says which ones are loaded.
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise UserError(
                f"{len(missing)} of the checkpoint's files are missing", where=str(folder / missing[0]), remedy="fetch it again"
            )
        files = [file for file in files if file.name in named]
    return sum(_count(file) for file in files)


def _count(file: Path) -> int:
    with open(file, "rb") as data:
        length = int.from_bytes(data.read(8), "little")
        try:
            if not 0 < length <= LARGEST_HEAD:
                raise ValueError(f"a header of {length} bytes")
            head = json.loads(data.read(length))
            return sum(math.prod(entry["shape"]) for name, entry in head.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the weights' file is damaged: {error}", where=str(file), remedy="fetch it again") from None
