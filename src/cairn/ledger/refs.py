"""Two marks for configuration fields: what names another stage, and what names a file from outside. Knows no stage and no file.

They stand on the lowest floor so that a room's own configuration can carry them; `pipeline/` finds them and gives them meaning.
"""

from __future__ import annotations

import os.path
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel


class _Mark:
    """Metadata of an annotated field."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


STAGE = _Mark("STAGE")
INPUT = _Mark("INPUT")

StageRef = Annotated[str, STAGE]
"""A field that holds the name of another stage of the recipe."""
InputPath = Annotated[str, INPUT, AfterValidator(os.path.expanduser)]
"""A field that holds a file or folder from outside: its content counts in the key, its path does not.
`~` is expanded here and nowhere else."""

Location = tuple[str | int, ...]


def marked(config: BaseModel, mark: _Mark) -> Iterator[tuple[Location, str]]:
    """Every (location, value) in `config` whose type carries `mark`, however deep, in the order of the fields."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if any(m is mark for m in field.metadata) and isinstance(value, str):
            yield (name,), value
        else:
            yield from (((name, *rest), found) for rest, found in _walk(value, field.annotation, mark))


def _walk(value: Any, annotation: Any, mark: _Mark) -> Iterator[tuple[Location, str]]:
    if value is None:
        return
    if isinstance(value, BaseModel):
        yield from marked(value, mark)
        return
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        if mark in args[1:] and isinstance(value, str):
            yield (), value
        else:
            yield from _walk(value, args[0], mark)
    elif origin in (typing.Union, types.UnionType):
        for arg in args:
            found = list(_walk(value, arg, mark))
            if found:
                # The first branch that has marks for this value: a union of marked types would name it twice.
                yield from found
                return
    elif isinstance(value, Mapping):
        inner = args[1] if len(args) == 2 else Any
        for key, item in value.items():
            yield from (((key, *rest), found) for rest, found in _walk(item, inner, mark))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, item in enumerate(value):
            inner = Any if not args else args[index] if origin is tuple and Ellipsis not in args and index < len(args) else args[0]
            yield from (((index, *rest), found) for rest, found in _walk(item, inner, mark))


def replace(value: Any, location: Location, new: Any) -> Any:
    """A copy of the nested JSON-like `value` with what stands at `location` replaced."""
    if not location:
        return new
    head, rest = location[0], location[1:]
    if isinstance(value, Mapping):
        return {k: replace(v, rest, new) if k == head else v for k, v in value.items()}
    return [replace(v, rest, new) if i == head else v for i, v in enumerate(value)]


def locate(value: Any, place: str) -> tuple[Location, Any]:
    """The location that a dotted place such as `data.0.path` is in a nested JSON-like value, and what stands there."""
    found: list[str | int] = []
    for part in place.split("."):
        step: str | int = int(part) if isinstance(value, list) else part
        value = value[step]
        found.append(step)
    return tuple(found), value


__all__ = ["INPUT", "STAGE", "InputPath", "Location", "StageRef", "locate", "marked", "replace"]
