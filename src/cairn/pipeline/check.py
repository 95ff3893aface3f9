"""Mistakes of a recipe that can be known before its first stage runs: files that no stage writes, bad rows in files from outside.

Names of readers, formats and the like are checked where a recipe is read. Knows sources of rows; no stage's inside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cairn.data.sources import Source
from cairn.errors import UserError, did_you_mean
from cairn.ledger.digest import code_digest, json_digest
from cairn.ledger.progress import Progress
from cairn.ledger.refs import Location
from cairn.ledger.store import Artifact, Store, write_atomically
from cairn.pipeline.keys import Node
from cairn.pipeline.recipe import Recipe

HEAD = 20
"""Rows of a file that a plan reads."""
REMEMBERED = 2.0
"""Seconds from which on a pass over a file is remembered, so that the next run need not read it again."""


def sources(value: Any, location: Location = ()) -> Iterator[tuple[Location, Source]]:
    """Every source in a configuration, with its place."""
    if isinstance(value, Source):
        yield location, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from sources(getattr(value, name), (*location, name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from sources(item, (*location, key))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, item in enumerate(value):
            yield from sources(item, (*location, index))


def check_files(recipe: Recipe, node: Node, artifacts: Mapping[str, Artifact | None]) -> None:
    """See that every file which a stage asks of other stages is there or will be.

    Args:
        recipe: the recipe.
        node: the stage that asks.
        artifacts: what is in the store of the stages before it, by name; None where it is still to be made.

    Raises:
        UserError: a stage that does not write such a file.
    """
    config = node.spec.config
    asked = [((*place, "file"), str(source.stage), (str(source.file),)) for place, source in sources(config) if source.stage is not None]
    for place, name, files in [*asked, *node.spec.stage.needs(config)]:
        artifact, giver = artifacts[name], recipe.stages[name]
        known = giver.stage.outputs(giver.config) if artifact is None else artifact.record.outputs
        if known is not None and not any(file in known for file in files):
            what = f"the stage '{name}' (kind {giver.stage.kind}) writes no file '{files[0]}'"
            raise UserError(what, where=recipe.spot("stages", node.name, *place), remedy=did_you_mean(files[0], known))


def check_heads(node: Node) -> None:
    """Read the first rows of each file from outside: a plan of what is empty, or no data at all, would be worth nothing.

    Args:
        node: a stage that is to run.

    Raises:
        UserError: an empty file, or a bad row among the first ones.
    """
    if not node.spec.stage.stops_at_bad_rows(node.spec.config):
        return
    for _, source in sources(node.spec.config):
        if source.path is not None:
            for _row in islice(source.read(Path(source.path)), HEAD):
                pass


def check_rows(nodes: Sequence[Node], store: Store, progress: Callable[[str], Progress]) -> None:
    """Read the rows from outside that stages will stop at if they are bad: all but the first stage's, which reads its own at once.

    Args:
        nodes: the stages that are to run, in order.
        store: remembers the files that took long and were good.
        progress: makes the display of a title.

    Raises:
        UserError: the first bad row, with file, row and field.
    """
    good: set[Path] = set()
    for node in nodes[1:]:
        if not node.spec.stage.stops_at_bad_rows(node.spec.config):
            continue
        for place, source in sources(node.spec.config):
            if source.path is None:
                continue
            digest = node.files[".".join(map(str, (*place, "path")))].sha256
            how = source.model_dump(include={"reader", "encoding", "separator", "limit"})
            memory = store.cache / f"rows-{json_digest([digest, how, source.prompts, code_digest('cairn.data.readers')])}"
            if memory in good or memory.exists():
                continue
            good.add(memory)
            if _read(source, Path(source.path), progress(f"{node.name}: {source.name}")) > REMEMBERED:
                store.cache.mkdir(parents=True, exist_ok=True)
                write_atomically(memory, "")


def _read(source: Source, path: Path, display: Progress) -> float:
    """Read all rows of a source; the seconds that it took."""
    began = time.monotonic()
    try:
        display.start(None, "rows checked")
        for count, _ in enumerate(source.read(path), 1):
            if count % 1000 == 0:
                display.update(count)
    finally:
        display.close()
    return time.monotonic() - began
