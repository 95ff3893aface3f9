"""How many bytes of rows a stage will read, for plans. Opens no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cairn.pipeline.check import sources
from cairn.pipeline.stage import PlannedInputs


def source_bytes(config: Any, inputs: PlannedInputs) -> int | None:
    """Bytes of all sources in a configuration, whatever their limits; None where the size of one cannot be told yet.

    Of a stage that is still to run all its files count, once, since it tells the size of no single one.
    """
    total = 0
    planned: set[str] = set()
    for _, source in sources(config):
        if source.stage is None:
            total += _size(Path(str(source.path)))
            continue
        artifact = inputs[source.stage]
        if artifact is not None:
            total += artifact.record.outputs[str(source.file)].bytes
        elif source.stage not in planned:
            size = inputs.estimates[source.stage].disk_bytes
            if size is None:
                return None
            planned.add(source.stage)
            total += size
    return total


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
