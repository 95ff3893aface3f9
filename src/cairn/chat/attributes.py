"""Attributes that steer answers: what a schema is, and a format with a schema of one's own. Knows formats; no rows, no model.

A schema maps names to ranges and defaults, in the order in which they stand in the text (SteerLM, Dong et al. 2023; the nine that are
built in are those of KARAKURI LM Chat's card).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, RootModel, model_serializer

from cairn.chat.format import Attribute, Format, compose, format_names, load_format
from cairn.config import Config, Invalid, build, read_yaml
from cairn.errors import UserError

BUILT_IN = "karakuri"
"""The format whose attributes are the built-in schema."""

_NAME = re.compile(r"\w[\w.-]*")


def _names(value: dict[str, Attribute]) -> dict[str, Attribute]:
    if not value:
        raise Invalid("a schema has at least one attribute", "name one, or leave the key out")
    for name in value:
        # A space or a colon would end the name when the text is read back.
        if not _NAME.fullmatch(name):
            raise Invalid(f"'{name}' cannot name an attribute", "use letters, digits, _, . and -")
    return value


def _from_pairs(value: Any) -> Any:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in value)
    found = dict(value) if pairs else value
    remedy = "write attributes: {NAME: {default: 2, minimum: 0, maximum: 4}}"
    if found is not None and not isinstance(found, Mapping):
        raise Invalid(f"a schema gives each attribute's name its range, and this is {found!r}"[:200], remedy)
    for name, one in (found or {}).items():
        if not isinstance(one, Mapping | Attribute):
            raise Invalid(f"the attribute '{name}' is {one!r}: its default and its range are asked for"[:200], remedy)
    return found


class Attributes(RootModel[Annotated[dict[str, Attribute], BeforeValidator(_from_pairs), AfterValidator(_names)]]):
    """A configuration's schema: {name: {default, minimum, maximum}}, in the order of a prompt. Pairs are read too."""

    model_config = ConfigDict(frozen=True)

    @model_serializer
    def _in_order(self) -> list[list[Any]]:
        """Pairs, for records sort the keys of what they hold: an order that is lost in one makes a replay write other prompts."""
        return [[name, attribute.model_dump(mode="json")] for name, attribute in self.root.items()]


class _File(Config):
    """A file that holds a schema."""

    attributes: Attributes
    """The attributes, in their order."""


def built_in() -> dict[str, Attribute]:
    """The nine attributes of KARAKURI: five of HelpSteer, four of OASST2, whole numbers from 0 to 4."""
    return dict(load_format(BUILT_IN).attributes or {})


def read_schema(path: Path) -> dict[str, Attribute]:
    """A schema of a YAML file: `attributes: {clarity: {default: 3}, length: {default: 5, minimum: 1, maximum: 9}}`.

    Raises:
        UserError: no such file, or something wrong in it, with its line.
    """
    return build(_File, read_yaml(path), where=str(path), text=Path(path).read_text(encoding="utf-8")).attributes.root


def with_attributes(format: str, attributes: Mapping[str, Attribute]) -> Format:
    """A shipped format whose user turns carry these attributes instead of its own; its template holds their defaults.

    Raises:
        UserError: no such format, or one that has no place for attributes.
    """
    found = load_format(format)
    if not found.attributes:
        fit = [name for name in format_names() if load_format(name).attributes]
        raise UserError(f"the format '{format}' has no place for attributes", where="attributes", remedy=f"set format: {' or '.join(fit)}")
    return compose(found.model_copy(update={"attributes": dict(attributes)}))


def from_fraction(fraction: float, attribute: Attribute) -> int:
    """The whole number that a fraction of an attribute's range stands for: OASST's labels are means of votes between 0 and 1.

    The rule: minimum + floor(fraction × (maximum − minimum) + 1/2), so 0 to 4 are the fifths around 0, 1/4, 1/2, 3/4 and 1, and a
    fraction halfway between two numbers becomes the higher one (0.125 → 1, 0.375 → 2, 0.625 → 3, 0.875 → 4; never Python's round to the
    even one). What a mean of votes loses in binary (1e-9) counts as nothing.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction between 0 and 1, not {fraction!r}")
    return attribute.minimum + math.floor(fraction * (attribute.maximum - attribute.minimum) + 0.5 + 1e-9)


def nearest(value: float, attribute: Attribute) -> int:
    """The whole number of an attribute's range that a prediction stands for: the nearest one, of two the higher; beyond it, its end."""
    return min(max(math.floor(value + 0.5), attribute.minimum), attribute.maximum)


def turn_attributes(row: Mapping[str, Any], answer: int) -> dict[str, int]:
    """What the answer `messages[answer]` of a row is asked to be like: by the user's turn before it, and then by the row."""
    before = [m for m in row["messages"][:answer] if m["role"] == "user"]
    return {**(row.get("attributes") or {}), **((before[-1].get("attributes") or {}) if before else {})}
