"""The key of each stage of a recipe: what its artifact depends on, as one digest. Runs no stage.

A key covers kind, configuration, code and seed. In the configuration each reference to a stage is replaced by that
stage's key and each file from outside by the digest of its content, so that neither names nor paths count. A stage that shows
names to its readers has those in its key.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.config import Config
from cairn.errors import UserError, did_you_mean
from cairn.ledger.digest import code_digest, file_digest, json_digest
from cairn.ledger.record import File
from cairn.ledger.refs import INPUT, STAGE, marked, replace
from cairn.ledger.store import Store
from cairn.pipeline.graph import ancestors, order
from cairn.pipeline.recipe import Recipe, StageSpec
from cairn.pipeline.stage import Stage


@dataclass(frozen=True)
class Node:
    """A stage of a recipe with all that its key depends on."""

    spec: StageSpec
    key: str
    inputs: dict[str, str]
    """{stage name: key}."""
    files: dict[str, File]
    """{place in the configuration: file}."""
    code: str
    names: dict[str, str]
    """{key: name} of all stages before it, where its outputs show names."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.spec.name


def nodes(recipe: Recipe, store: Store, until: str | None = None) -> list[Node]:
    """The recipe's stages with their keys, in the order in which they run.

    Args:
        recipe: the recipe.
        store: remembers the digests of large files from outside.
        until: leave out all that this stage does not need.

    Raises:
        UserError: unknown references, a circle, a missing file.
    """
    references = {name: [ref for _, ref in marked(spec.config, STAGE)] for name, spec in recipe.stages.items()}

    def spot(name: str, ref: str | None = None) -> str:
        location = next((place for place, value in marked(recipe.stages[name].config, STAGE) if value == ref), ())
        return recipe.spot("stages", name, *location)

    names = order(references, spot)
    if until is not None:
        if until not in references:
            raise UserError(f"the recipe has no stage '{until}'", where="--until", remedy=did_you_mean(until, references))
        wanted = ancestors(references, until)
        names = [name for name in names if name in wanted]
    found: dict[str, Node] = {}
    for name in names:
        spec = recipe.stages[name]
        inputs = {ref: found[ref].key for ref in references[name]}
        files = {}
        for location, path in marked(spec.config, INPUT):
            files[".".join(map(str, location))] = _file(path, store, recipe.spot("stages", name, *location))
        code = stage_code(spec.stage)
        shown: dict[str, str] = {}
        told = None
        if spec.stage.shows_names:
            before = ancestors(references, name) - {name}
            # Of two stages with one key the first gives the name.
            shown = {found[one].key: one for one in reversed(names) if one in before}
            told = {"recipe": recipe.name, "command": recipe.command, "names": shown}
        key = stage_key(spec.stage.kind, spec.config, inputs, {place: f.sha256 for place, f in files.items()}, code, recipe.seed, told)
        found[name] = Node(spec, key, inputs, files, code, shown)
    return list(found.values())


def stage_key(
    kind: str, config: Config, inputs: Mapping[str, str], files: Mapping[str, str], code: str, seed: int, shown: Any = None
) -> str:
    """The key out of its parts.

    Args:
        kind: kind of the stage.
        config: its configuration.
        inputs: {stage name: key}.
        files: {place in the configuration: digest of the content}.
        code: digest of the code.
        seed: the recipe's seed.
        shown: what else its outputs show: names and the command; None for most.
    """
    content = config_value(config)
    for location, ref in marked(config, STAGE):
        content = replace(content, location, {"stage": inputs[ref]})
    for location, _ in marked(config, INPUT):
        content = replace(content, location, {"content": files[".".join(map(str, location))]})
    return json_digest({"kind": kind, "config": content, "code": code, "seed": seed, **({} if shown is None else {"shown": shown})})


def config_value(config: Config) -> dict[str, Any]:
    """A configuration as JSON-like values, with its defaults."""
    return config.model_dump(mode="json", serialize_as_any=True)


@functools.cache
def stage_code(stage: Stage) -> str:
    """Digest of the code that shapes a stage's outputs."""
    more = (stage.code,) if isinstance(stage.code, str) else tuple(stage.code)
    own = type(stage).__module__
    if own.startswith("cairn."):
        return code_digest(own, *more)
    # A stage from elsewhere: its own file counts, with what it names of this package.
    return json_digest([file_digest(inspect.getfile(type(stage))), code_digest(*more)])


def _file(path: str, store: Store, where: str) -> File:
    full = Path(path).absolute()
    if not full.exists():
        raise UserError(f"no such file or folder: {path}", where=where, remedy=f"check the path (it was looked for as {full})")
    try:
        if full.is_dir() and not any(full.iterdir()):
            raise UserError(f"the folder is empty: {path}", where=where, remedy="check the path")
        return File(path=str(full), sha256=store.content_digest(full))
    except PermissionError as error:
        raise UserError(f"the file may not be read: {error.filename}", where=where, remedy="check its permissions") from None
