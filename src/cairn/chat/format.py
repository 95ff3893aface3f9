"""A chat format: a Jinja template and what belongs to it (special tokens, stop tokens, borders, attributes, grammar). No code per format.

A shipped format is two files in `formats/`: `<name>.jinja` and `<name>.yaml`. A few macros that every format needs (the
escape of look-alike markers, the tool prompt, tool calls, attributes) are put in front of the template out of the YAML, so
that they cannot disagree with the parser; the result is one self-contained text, the one that is rendered here and exported
as `chat_template`. A checkpoint's folder brings its own template, and `chat_format.yaml` if it was made here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from cairn.config import Config, build, parse_yaml, read_yaml
from cairn.errors import UserError, did_you_mean
from cairn.tokenizer.train import Borders

JOINER = "\u2060"
"""Word joiner, an invisible sign: put after a marker that stands inside somebody's text, so that it is no marker any more."""

_SHARED = "_shared"
_DATA = resources.files("cairn.chat") / "formats"


class Attribute(Config):
    """An integer that steers the answer."""

    default: int
    """The value where a row gives none."""
    minimum: int = 0
    """The lowest value allowed."""
    maximum: int = 4
    """The highest value allowed."""

    @model_validator(mode="after")
    def _in_range(self) -> Attribute:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum ({self.minimum}) must be below maximum ({self.maximum})")
        if not self.minimum <= self.default <= self.maximum:
            raise ValueError(f"the default ({self.default}) must lie between minimum ({self.minimum}) and maximum ({self.maximum})")
        return self


class Turn(Config):
    """How a turn reads in rendered text.

    The pattern is a regular expression over the text in which special tokens are written by name, `{bos}` and `{eos}` stand
    for those tokens, `{text}` for the shortest run and `{run}` for the longest run of text without special tokens.
    """

    role: Literal["system", "user", "assistant", "tool"]
    """Whose turn it is. `tool`: the group is one or several tool responses."""
    after: tuple[Literal["start", "user", "assistant", "tool"], ...]
    """After which turns it may stand; `start` includes "after the system text"."""
    pattern: str
    """Groups: `text`, and for the assistant `stop`, for the user `attributes`."""


class Grammar(Config):
    """How rendered text is read back."""

    start: tuple[str, ...] = ()
    """Patterns of what may stand in front of the first turn, tried in order; the group `text` is the system's text."""
    turns: tuple[Turn, ...]
    """The turns, tried in order."""


class ToolPrompt(Config):
    """The words around the function signatures."""

    before: str
    """Stands in front of `<tools>`."""
    after: str
    """Stands behind `</tools>`."""


class Format(Config):
    """A chat format."""

    name: str
    """The name: a shipped format, or what the checkpoint's folder is called."""
    description: str = ""
    """One sentence: whose format it is, and what was decided where the source leaves it open."""
    special_tokens: tuple[str, ...] = ()
    """Tokens that the template writes and that a tokenizer must hold."""
    bos: str | None = None
    """What stands at the start; `bos_token` in the template. A tokenizer that lacks it lends its own."""
    eos: str | None = None
    """What ends an answer; `eos_token` in the template. A tokenizer that lacks it lends its own."""
    stop: tuple[str, ...] = ()
    """Tokens at which generation stops."""
    closing: str = ""
    """Text between an answer and its stop token. It is supervised with the answer: else the model never learns to write it."""
    borders: Borders = Borders()
    """Strings at whose edges tokens end, in tokenizers trained for this format."""
    escapes: tuple[str, ...] = ()
    """Markers that are plain text in this format. Inside anybody's text each gets a word joiner (U+2060) behind it, and loses it
    on parsing. Each is a proper beginning of what the template writes, so that the template's own never has one behind it."""
    attributes: dict[str, Attribute] | None = None
    """Attributes that stand at every user turn, in this order."""
    tool_prompt: ToolPrompt | None = None
    """The words around the function signatures."""
    grammar: Grammar | None = None
    """How rendered text is read back; none for a checkpoint's own template."""
    template: str = Field(default="", repr=False)
    """The Jinja template, self-contained."""
    shipped: bool = Field(default=True, exclude=True)
    """Whether the template is known to obey the rules above (escapes, generation marks)."""

    def to_yaml(self) -> str:
        """What `chat_format.yaml` in a checkpoint's folder holds: all but the template, which stands in tokenizer_config.json."""
        value = self.model_dump(mode="json", exclude={"template"}, exclude_defaults=True)
        return yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=1000)

    def escape(self, text: str) -> str:
        """Text as it stands in a rendered conversation: the same as the template's macro `own`."""
        for marker in self.escapes:
            text = text.replace(marker, marker + JOINER)
        return text

    def unescape(self, text: str) -> str:
        """The inverse of `escape`, for every text."""
        # Each replacement is undone exactly because no marker holds a joiner; hence the composition is, in reverse order.
        for marker in reversed(self.escapes):
            text = text.replace(marker + JOINER, marker)
        return text

    def check_attributes(self, attributes: dict[str, Any] | None, where: str = "attributes") -> None:
        """Refuse attributes that the format does not have, or out of range.

        Raises:
            UserError: names the attribute and the remedy.
        """
        remedy = "" if self.attributes else f"the format '{self.name}' has no attributes; remove it"
        check_values(self.attributes or {}, attributes, where, remedy)


def check_values(schema: Mapping[str, Attribute], values: Mapping[str, Any] | None, where: str = "attributes", remedy: str = "") -> None:
    """Refuse attributes that a schema does not have, or out of range.

    Args:
        schema: the attributes by name.
        values: what is asked for.
        where: the place of `values`, for errors.
        remedy: what to do about an unknown one; empty names the nearest ones.

    Raises:
        UserError: names the attribute and the remedy.
    """
    for name, value in (values or {}).items():
        known = schema.get(name)
        if known is None:
            raise UserError(f"unknown attribute '{name}'", where=f"{where}.{name}", remedy=remedy or did_you_mean(name, schema))
        if isinstance(value, bool) or not isinstance(value, int) or not known.minimum <= value <= known.maximum:
            raise UserError(
                f"the attribute '{name}' is {value!r}",
                where=f"{where}.{name}",
                remedy=f"give a whole number from {known.minimum} to {known.maximum} (default {known.default})",
            )


def format_names() -> list[str]:
    """The shipped formats."""
    return sorted(
        item.name.removesuffix(".yaml") for item in _DATA.iterdir() if item.name.endswith(".yaml") and not item.name.startswith("_")
    )


def check_format(name: str) -> None:
    """Raises:
    UserError: no format of that name is shipped. A recipe names no folder: its content would not be in the key.
    """
    if name not in format_names():
        raise UserError(f"unknown chat format '{name}'", remedy=did_you_mean(name, format_names()))


def load_format(name_or_folder: str | Path) -> Format:
    """A shipped format by name, or the format that a checkpoint's folder brings along.

    Raises:
        UserError: unknown name, no template in the folder, or a malformed file.
    """
    if isinstance(name_or_folder, str) and name_or_folder in format_names():
        return _shipped(name_or_folder)
    folder = Path(name_or_folder)
    if folder.is_dir():
        return _from_folder(folder)
    raise UserError(
        f"unknown chat format '{name_or_folder}'",
        remedy=did_you_mean(str(name_or_folder), format_names()) + " A checkpoint's folder does too",
    )


@cache
def _shipped(name: str) -> Format:
    text = (_DATA / f"{name}.yaml").read_text(encoding="utf-8")
    where = f"formats/{name}.yaml"
    shared = parse_yaml((_DATA / f"{_SHARED}.yaml").read_text(encoding="utf-8"), where="formats/_shared.yaml")
    value = {"name": name, "tool_prompt": shared["tool_prompt"], **parse_yaml(text, where=where)}
    value["escapes"] = [*value.get("escapes", []), *shared["escapes"]]
    return compose(build(Format, value, where=where, text=text))


def compose(format: Format) -> Format:
    """A shipped format with its template put together anew out of what its fields say."""
    body = (_DATA / f"{format.name}.jinja").read_text(encoding="utf-8")
    return format.model_copy(update={"template": _macros(format) + body})


def _macros(format: Format) -> str:
    """The macros in front of every shipped template, with what the YAML says filled in."""
    assert format.tool_prompt is not None
    attributes = ", ".join(f"[{_literal(name)}, {attribute.default}]" for name, attribute in (format.attributes or {}).items())
    escapes = "".join(f" | replace({_literal(m)}, {_literal(m + JOINER)})" for m in format.escapes)
    text = (_DATA / f"{_SHARED}.jinja").read_text(encoding="utf-8")
    if not attributes:
        text = re.sub(r"\{#- attributes -#\}.*?\{#- end -#\}\n", "", text, flags=re.DOTALL)
    text = re.sub(r"\{#-.*?-#\}\n?", "", text, flags=re.DOTALL)
    for mark, filled in {
        "| ESCAPES": escapes.strip(),
        "BEFORE": _literal(format.tool_prompt.before),
        "AFTER": _literal(format.tool_prompt.after),
        "ATTRIBUTES": f"[{attributes}]",
    }.items():
        text = text.replace(mark, filled)
    return text


def _literal(text: str) -> str:
    """A Jinja string literal, in ASCII."""
    return "'" + text.encode("unicode_escape").decode().replace("'", "\\'") + "'"


def _from_folder(folder: Path) -> Format:
    config = folder / "tokenizer_config.json"
    settings: dict[str, Any] = {}
    if config.is_file():
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"not valid JSON: {error}", where=str(config), remedy="copy the checkpoint again") from None
    template = _folder_template(folder, settings)
    if template is None:
        raise UserError(
            "the checkpoint has no chat template",
            where=str(folder),
            remedy="name a format: one of " + ", ".join(format_names()),
        )
    file = folder / "chat_format.yaml"
    if file.is_file():
        return build(Format, read_yaml(file), where=str(file), text=file.read_text(encoding="utf-8")).model_copy(
            update={"template": template}
        )
    bos, eos = (_name(settings.get(key)) for key in ("bos_token", "eos_token"))
    return Format(
        name=folder.resolve().name,
        template=template,
        bos=bos,
        eos=eos,
        stop=tuple(_folder_stops(folder, settings, eos)),
        shipped=False,
    )


def _folder_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) and found else None


def _folder_stops(folder: Path, settings: dict[str, Any], eos: str | None) -> list[str]:
    """The stop tokens: eos, and what generation_config.json adds."""
    file = folder / "generation_config.json"
    stops = [eos] if eos else []
    if file.is_file():
        ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") or []
        names = {int(i): _name(token) for i, token in (settings.get("added_tokens_decoder") or {}).items()}
        stops += [name for i in (ids if isinstance(ids, list) else [ids]) if (name := names.get(i))]
    return list(dict.fromkeys(stops))


def _name(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None
