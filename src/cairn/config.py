"""The base of every configuration: YAML to typed, frozen objects, and back to canonical bytes.

Knows YAML, pydantic and nothing of what is configured. An unknown key is refused with its line and a "did you mean".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from cairn.errors import UserError, did_you_mean


class Config(BaseModel):
    """A frozen configuration that refuses keys it does not know. Subclass it beside the class that it configures."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)

SHOWN = 100
"""Letters of a wrong value that a message repeats."""

Place = tuple[str | int, ...]


class Invalid(ValueError):
    """What a validator refuses, with its own remedy.

    Args:
        what: the problem, one sentence that holds the value.
        remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def checked(check: Callable[[Any], object]) -> AfterValidator:
    """Metadata for a field whose value `check` refuses with a `UserError`: it is told with the value's own line."""

    def validate(value: Any) -> Any:
        try:
            check(value)
        except UserError as error:
            raise Invalid(error.what, error.remedy) from None
        return value

    return AfterValidator(validate)


def canonical_bytes(value: Any) -> bytes:
    """The one byte string of a JSON-like value: sorted keys, no spaces, UTF-8. Equal values, equal bytes.

    Raises:
        UserError: for text that is not Unicode (lone surrogates), which no file could hold.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError("text holds a lone surrogate, which is not Unicode", remedy="repair the text's encoding") from error


class _Lines(yaml.SafeLoader):
    """A YAML loader that remembers the line of every key and refuses a key given twice."""


def _construct_mapping(loader: _Lines, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    out: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in out:
            # PyYAML keeps the last of two equal keys: half of a recipe would vanish without a word.
            raise yaml.MarkedYAMLError(problem=f"the key '{key}' stands twice", problem_mark=key_node.start_mark)
        out[key] = loader.construct_object(value_node, deep=True)
    return out


_Lines.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: missing, empty or malformed file, a key twice, or a top level that is no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), remedy="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the file: {error}", where=str(path)) from None
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> dict[str, Any]:
    """Like `read_yaml`, for text at hand; `where` names it in errors."""
    try:
        value = yaml.load(text, Loader=_Lines)  # noqa: S506 - _Lines is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"not valid YAML: {getattr(error, 'problem', error)}", where=f"{where}{line}", remedy="correct this line") from None
    if value is None:
        raise UserError("the file is empty", where=where, remedy="write the recipe's keys into it")
    if not isinstance(value, dict):
        raise UserError("the top level must be a mapping of keys", where=where)
    return value


def key_line(text: str, path: tuple[Any, ...]) -> int | None:
    """The 1-based line at which the key or item `path` stands in YAML `text`, or None."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    line: int | None = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                if key_node.value == str(part):
                    line, node = key_node.start_mark.line + 1, value_node
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def build(cls: type[C], value: Mapping[str, Any], *, where: str, text: str | None = None, prefix: tuple[Any, ...] = ()) -> C:
    """Build a configuration out of a mapping.

    Args:
        cls: the configuration class.
        value: what YAML gave.
        where: the file, for errors.
        text: the YAML text, so that errors can name the line.
        prefix: where `value` stands inside `text`.

    Raises:
        UserError: an unknown key (with "did you mean"), a wrong type, or a value out of range.
    """

    def spot(place: Place) -> str:
        path = (*prefix, *place)
        line = key_line(text, path) if text else None
        return ", ".join(part for part in (where, f"line {line}" if line else "", _dotted(path)) if part)

    try:
        return cls.model_validate(value)
    except UserError as error:
        # A validator may ask another room, whose error knows nothing of this file.
        raise UserError(error.what, where=error.where or spot(()), remedy=error.remedy) from None
    except ValidationError as error:
        first, place = _foremost(error, value)
        if first["type"] == "extra_forbidden":
            key = str(place[-1])
            raise UserError(f"unknown key '{key}'", where=spot(place), remedy=did_you_mean(key, _known_keys(cls, place[:-1]))) from None
        if first["type"] == "missing":
            raise UserError(f"the key '{place[-1]}' is missing", where=spot(place), remedy="add it") from None
        own = first.get("ctx", {}).get("error")
        if isinstance(own, Invalid):
            raise UserError(str(own), where=spot(place), remedy=own.remedy) from None
        if first["type"] == "model_type":
            keys = ", ".join(_known_keys(cls, place))
            raise UserError("keys and their values belong here" + _got(first), where=spot(place), remedy=f"known: {keys}") from None
        raise UserError(first["msg"].removeprefix("Value error, ") + _got(first), where=spot(place), remedy="correct the value") from None


def _got(one: Any) -> str:
    """What was given, where it helps: a whole mapping that contradicts itself would bury the sentence that says how."""
    given = one.get("input")
    if one["type"] == "value_error" and isinstance(given, Mapping | list):
        return ""
    text = repr(given)
    return f" (got {text if len(text) <= SHOWN else text[:SHOWN] + '…'})"


def _foremost(error: ValidationError, value: Any) -> tuple[Any, Place]:
    """The one of pydantic's errors that helps most, and its place in `value`."""
    found = [(one, _place(one, value)) for one in error.errors(include_url=False)]
    # Every branch of a union says why it does not fit; the one that got further into the value is the one that was meant.
    inner = [(one, place) for one, place in found if not any(len(p) > len(place) and p[: len(place)] == place for _, p in found)]

    def rank(one: Any) -> int:
        own = isinstance(one.get("ctx", {}).get("error"), Invalid)
        return {"extra_forbidden": 0, "missing": 1}.get(one["type"], 2 if own else 3)

    return min(inner, key=lambda pair: rank(pair[0]))


def _place(one: Any, value: Any) -> Place:
    """Where an error stands in `value`: pydantic's location without the names of a union's branches."""
    place: list[str | int] = []
    for part in one["loc"]:
        if (isinstance(value, Mapping) and part in value) or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
            place.append(part)
    if one["type"] == "missing":
        place.append(one["loc"][-1])
    return tuple(place)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(p) for p in path)


def _known_keys(cls: type[BaseModel], loc: Place) -> list[str]:
    """The keys of the configuration that stands at `loc` inside `cls`."""
    found: type[BaseModel] = cls
    for part in loc:
        if isinstance(part, str) and part in found.model_fields:
            inner = _config_in(found.model_fields[part].annotation)
            if inner is not None:
                found = inner
    return list(found.model_fields)


def _config_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in getattr(annotation, "__args__", ()):
        inner = _config_in(arg)
        if inner is not None:
            return inner
    return None
