"""Recipes: YAML to checked stages, with overrides and variables. Runs nothing and opens no store.

recipe: pebble            # its name
seed: 1
description: one line     # optional
variables: {data: ./d}    # optional; `${data}` in any string of the stages; null means: must be given with --set
stages:
  corpus: {kind: corpus, ...}
  base: {kind: train, data: corpus, ...}
"""

from __future__ import annotations

import copy
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from cairn.config import Config, build, key_line, parse_yaml
from cairn.errors import UserError, did_you_mean
from cairn.ledger.refs import INPUT, marked
from cairn.pipeline.stage import Stage, find_stage

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_VARIABLE = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")


class RecipeFile(Config):
    """The top level of a recipe."""

    recipe: str
    """Its name: letters, digits, - and _."""
    seed: int = 0
    """The root of all randomness in it."""
    description: str = ""
    """One line for `cairn list`."""
    variables: dict[str, Any] = Field(default_factory=dict)
    """Values that `${name}` stands for in the stages' strings."""
    stages: dict[str, dict[str, Any]]
    """The stages by name, each with its kind and that kind's configuration."""


@dataclass(frozen=True)
class StageSpec:
    """One stage of a recipe."""

    name: str
    stage: Stage
    config: Config


@dataclass(frozen=True)
class Recipe:
    """A recipe whose configurations are checked."""

    name: str
    seed: int
    description: str
    stages: dict[str, StageSpec]
    where: str
    text: str
    command: str
    """What to type to run it: its file and the overrides, with stand-ins for files and folders from outside."""
    spots: dict[tuple[str, ...], str]
    """{place: override} of what the command line changed."""
    words: tuple[str, ...]
    """What follows `cairn` to run it from here, with real paths: for a further process, and for nobody's eyes."""

    def spot(self, *path: str | int) -> str:
        """Where a key of the recipe stands, or the override that gave it its value, for errors."""
        place = tuple(map(str, path))
        for start, override in self.spots.items():
            if place[: len(start)] == start:
                return f"--set {override}"
        line = key_line(self.text, path)
        return f"{self.where}, line {line}" if line else self.where

    def told(self, name: str, error: UserError) -> UserError:
        """The error of a stage whose place is a key of its configuration, such as `memory.budget_gb`, or that has none, with the
        recipe's line or override.

        Rooms below know keys and no recipe: in a recipe of ten stages a bare key says neither which one nor where.
        """
        config = self.stages[name].config
        path = error.where.split(".") if error.where else []
        if type(error) is not UserError or (path and path[0] not in type(config).model_fields):
            return error
        place = ("stages", name, *path)
        known = place in self.spots  # then the override says it all
        return UserError(error.what, where=self.spot(*place) + ("" if known else f", {'.'.join(place)}"), remedy=error.remedy)


def built_in() -> dict[str, Any]:
    """The recipes that come with the package: {name: file}."""
    folder = resources.files("cairn") / "recipes"
    return {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")} if folder.is_dir() else {}


def load_recipe(ref: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by the name of a built-in one or by its path.

    Args:
        ref: name or path.
        overrides: texts `a.b=c`; `a` is a stage, a variable or a key of the top level, `c` is YAML.

    Raises:
        UserError: no such recipe, or anything wrong in it or in the overrides.
    """
    where, text = _read(ref)
    raw = parse_yaml(text, where=where)
    spots = _apply(raw, overrides)
    with _blame(spots):
        top = build(RecipeFile, raw, where=where, text=text)
        _check_names(top, where, text)
        values = _variables(top, where, text)
        stages = {name: _stage(name, given, values, where, text) for name, given in top.stages.items()}
        stages = {name: _resolved(spec, stages, where, text) for name, spec in stages.items()}
    command = _command(ref, overrides, spots, stages)
    words = ("run", ref, *(word for override in overrides for word in ("--set", override)))
    return Recipe(top.recipe, top.seed, top.description, stages, where, text, command, spots, words)


def _command(ref: str, overrides: Sequence[str], spots: Mapping[tuple[str, ...], str], stages: Mapping[str, StageSpec]) -> str:
    """The command to show to readers: without paths, which differ on every machine and are nobody else's business."""
    paths = {path for spec in stages.values() for _, path in marked(spec.config, INPUT)}
    variables = {override for place, override in spots.items() if place[0] == "variables"}
    words = ["cairn", "run", Path(ref).name if ref.endswith((".yaml", ".yml")) else ref]
    for override in overrides:
        name, _, text = override.partition("=")
        value = yaml.safe_load(text)
        if isinstance(value, str) and _is_path(os.path.expanduser(value), paths, override in variables):
            text = _stand_in(value)
        for path in sorted(paths, key=len, reverse=True):
            if os.sep in path:
                text = text.replace(path, _stand_in(path))
        words += ["--set", f"{name}={text}"]
    return shlex.join(words)


def _is_path(value: str, paths: set[str], variable: bool) -> bool:
    """Whether an override gave one of `paths`, or as a variable the folder that it begins with."""
    return value in paths or (variable and Path(value).is_dir() and any(path.startswith(value) for path in paths))


def _stand_in(path: str) -> str:
    return "FOLDER" if Path(path).expanduser().is_dir() else "FILE"


def _stage(name: str, given: Mapping[str, Any], variables: Mapping[str, Any], where: str, text: str) -> StageSpec:
    """Check one stage."""

    def spot(*path: str) -> str:
        line = key_line(text, path)
        return f"{where}, line {line}, {'.'.join(path)}" if line else f"{where}, {'.'.join(path)}"

    if not isinstance(given.get("kind"), str):
        remedy = "add kind: with one of those that `cairn list` names"
        raise UserError(f"the stage '{name}' does not say its kind", where=spot("stages", name), remedy=remedy)
    stage = find_stage(given["kind"], spot("stages", name, "kind"))
    rest = _substitute({key: value for key, value in given.items() if key != "kind"}, variables, spot("stages", name))
    return StageSpec(name, stage, build(stage.config, rest, where=where, text=text, prefix=("stages", name)))


def _resolved(spec: StageSpec, stages: Mapping[str, StageSpec], where: str, text: str) -> StageSpec:
    """Let a stage choose what the recipe leaves to it."""
    try:
        config = spec.stage.resolve(spec.config, {name: other.config for name, other in stages.items()})
    except UserError as error:
        path = ("stages", spec.name, *error.where.rpartition(", ")[2].split("."))
        line = key_line(text, path)
        spot = f"{where}, line {line}, {'.'.join(path)}" if line else f"{where}, {'.'.join(path)}"
        raise UserError(error.what, where=spot, remedy=error.remedy) from None
    return StageSpec(spec.name, spec.stage, config)


def _read(ref: str) -> tuple[str, str]:
    """(where, text) of a recipe."""
    known = built_in()
    if ref in known:
        file: Any = known[ref]
        return str(file), file.read_text(encoding="utf-8")
    path = Path(ref)
    if path.is_dir():
        raise UserError("a recipe is a file and this is a folder", where=ref, remedy="name the .yaml file in it")
    if not path.is_file():
        what = "no such recipe file" if "/" in ref or ref.endswith((".yaml", ".yml")) else f"no built-in recipe is called '{ref}'"
        raise UserError(what, where=ref, remedy=f"{did_you_mean(ref, known)} A recipe of your own is given by its path.")
    try:
        return ref, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe: {error}", where=ref, remedy="a recipe is UTF-8 text that you may read") from None


def _apply(raw: dict[str, Any], overrides: Sequence[str]) -> dict[tuple[str, ...], str]:
    """Write the overrides into `raw`; give {path: override} for errors."""
    spots: dict[tuple[str, ...], str] = {}
    stages = raw.get("stages") if isinstance(raw.get("stages"), dict) else {}
    variables = raw.get("variables") if isinstance(raw.get("variables"), dict) else {}
    assert isinstance(stages, dict)
    assert isinstance(variables, dict)
    for override in overrides:
        dotted, equals, value_text = override.partition("=")
        path = dotted.strip().split(".")
        if not equals or not all(path):
            raise UserError("an override is written a.b=c", where=f"--set {override}", remedy="for example --set base.steps=100")
        if len(path) == 1 and path[0] in variables:
            path = ["variables", *path]
        elif path[0] in stages:
            path = ["stages", *path]
        elif path[0] not in RecipeFile.model_fields:
            known = [*stages, *variables, *RecipeFile.model_fields]
            raise UserError(f"the recipe knows no '{path[0]}'", where=f"--set {override}", remedy=did_you_mean(path[0], known))
        elif path[0] == "stages" and len(path) > 1 and path[1] not in stages:
            raise UserError(f"the recipe has no stage '{path[1]}'", where=f"--set {override}", remedy=did_you_mean(path[1], stages))
        elif path[0] == "variables" and len(path) > 1 and path[1] not in variables:
            raise UserError(f"the recipe has no variable '{path[1]}'", where=f"--set {override}", remedy=did_you_mean(path[1], variables))
        try:
            value = yaml.safe_load(value_text)
        except yaml.YAMLError:
            raise UserError("the value is not valid YAML", where=f"--set {override}", remedy="put it into quotes") from None
        spots[_put(raw, path, value, override)] = override
    return spots


def _put(raw: Any, path: list[str], value: Any, override: str) -> tuple[str, ...]:
    """Set what stands at `path`; items of a list go by index or by their `name`. Gives the path in indices."""
    here = raw
    taken: list[str] = []
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(here, list):
            names = [str(item.get("name")) if isinstance(item, Mapping) else "" for item in here]
            if part in names:
                index = names.index(part)
            elif part.isdigit() and int(part) < len(here):
                index = int(part)
            else:
                known = [n for n in names if n and n != "None"] or [str(i) for i in range(len(here))]
                what = f"the list {'.'.join(taken)} has no item '{part}'"
                raise UserError(what, where=f"--set {override}", remedy=did_you_mean(part, known))
            taken.append(str(index))
            if last:
                here[index] = value
            here = here[index]
            continue
        if not isinstance(here, dict):
            raise UserError(f"'{'.'.join(taken)}' holds no keys", where=f"--set {override}", remedy=f"it is {here!r} in the recipe")
        taken.append(part)
        if last:
            here[part] = value
        elif here.get(part) is None:
            here[part] = {}
        here = here[part]
    return tuple(taken)


@contextmanager
def _blame(spots: dict[tuple[str, ...], str]) -> Iterator[None]:
    """Let an error name the override, and not a line of the file, where an override is to blame."""
    try:
        yield
    except UserError as error:
        blamed = error.where.rpartition(", ")[2].split(".")
        for path, override in spots.items():
            if list(path) == blamed[: len(path)]:
                raise UserError(error.what, where=f"--set {override}", remedy=error.remedy) from None
        raise


def _check_names(top: RecipeFile, where: str, text: str) -> None:
    if not _NAME.fullmatch(top.recipe):
        line = key_line(text, ("recipe",))
        raise UserError(f"'{top.recipe}' cannot name a recipe", where=f"{where}, line {line}", remedy="use letters, digits, - and _")
    if not top.stages:
        raise UserError("the recipe has no stages", where=where, remedy="add one under stages:")
    for name in top.stages:
        if not _NAME.fullmatch(name) or name in RecipeFile.model_fields or name in top.variables:
            line = key_line(text, ("stages", name))
            remedy = "use letters, digits, - and _, and no name of a variable or of a key of the top level"
            raise UserError(f"'{name}' cannot name a stage", where=f"{where}, line {line}", remedy=remedy)


def _variables(top: RecipeFile, where: str, text: str) -> dict[str, Any]:
    for name, value in top.variables.items():
        spot = f"{where}, line {key_line(text, ('variables', name))}, variables.{name}"
        if value is None:
            raise UserError(f"the variable '{name}' has no value", where=spot, remedy=f"give it: --set {name}=...")
        if isinstance(value, dict | list):
            raise UserError(f"the variable '{name}' is no single value", where=spot, remedy="give text or a number")
    return top.variables


def _substitute(value: Any, variables: Mapping[str, Any], where: str) -> Any:
    """`${name}` replaced in every string; a string that is nothing else takes the variable's type as well."""
    if isinstance(value, dict):
        return {key: _substitute(item, variables, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, variables, where) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return copy.deepcopy(value)

    def look_up(match: re.Match[str]) -> Any:
        if match[1] not in variables:
            raise UserError(f"unknown variable '${{{match[1]}}}'", where=where, remedy=did_you_mean(match[1], variables))
        return variables[match[1]]

    whole = _VARIABLE.fullmatch(value)
    return look_up(whole) if whole else _VARIABLE.sub(lambda match: str(look_up(match)), value)
