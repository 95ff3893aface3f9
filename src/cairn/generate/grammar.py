"""What an answer must look like, as text for llguidance: a JSON schema, a regular expression, a list of choices, a grammar, function calls.

Pure functions from what a user gives to a `Grammar`; what is malformed or too large is refused here, what llguidance cannot
do when it is compiled (`cairn.generate.constrain`). Knows no tokenizer, no model and no tensor.

White space in JSON is bounded: at most one space behind a comma and a colon. With free white space a model that is unsure
writes blanks until its budget ends.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cairn.chat.calls import CallLayout
from cairn.errors import UserError, did_you_mean

MAX_BYTES = 1_000_000
"""Longest schema or grammar, as UTF-8."""
MAX_PATTERN = 20_000
"""Longest regular expression, in characters."""
MAX_CHOICES = 2_000
"""Most choices: the time to compile grows faster than their number (0.01 s for 1,000, 0.6 s for 20,000, 168 s for 50,000)."""
MAX_DEPTH = 100
"""Deepest nesting of a schema."""
_LOOSE = (", ?", ": ?")
_ANYTHING = "(?s:.*)"
_PLAIN = re.compile(r"[^\\^$.|?*+()\[\]{}\"/<>\s]{2,64}")
_HINTS = 16
"""Words of a grammar that are kept as hints."""


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like.

    Attributes:
        lark: the grammar, in llguidance's variant of Lark; its rule `start` is the answer.
        what: what to call it in errors.
        json_after: where JSON begins, whose numbers and nesting are then bounded: behind this text ("": at once); None: nowhere.
        head: text that stands in front of the answer.
        hints: words that its expressions hold, which an ending may need.
    """

    lark: str
    what: str
    json_after: str | None = None
    head: str = ""
    hints: tuple[str, ...] = ()

    def source(self) -> str:
        """The grammar as llguidance takes it."""
        grammars = [{"name": "answer", "lark_grammar": self.lark}]
        if self.head:
            grammars.insert(0, {"name": "head", "lark_grammar": f"start: {_literal(self.head)} @answer"})
        return json.dumps({"grammars": grammars})


@dataclass(frozen=True)
class Hold:
    """What the answers of a file or a conversation are held to; see `cairn.generate.session.Session.request`.

    Attributes:
        constraint: what every answer must look like.
        tool_choice: holds answers to calls that parse.
        healed: plain text is continued from inside of its last word; see `cairn.generate.healing`.
    """

    constraint: Grammar | None = None
    tool_choice: str | None = None
    healed: bool = False


def json_schema(schema: Any, where: str = "schema") -> Grammar:
    """JSON that is valid against a schema.

    Raises:
        UserError: no schema (an object, true or false), or one that is too large or nested too deep.
    """
    lark = f"start: {_json(schema, _LOOSE, where)}"
    return Grammar(lark, "the JSON schema", "", hints=_words(_patterns(schema)))


def json_object() -> Grammar:
    """Any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str, where: str = "regex") -> Grammar:
    """Text that matches a regular expression as a whole (Rust's syntax: no look-around, no back-references).

    Raises:
        UserError: no text, an empty one, or one that is too long.
    """
    from llguidance import regex_to_lark

    if not isinstance(pattern, str) or not pattern:
        raise UserError("a regular expression must be text, and not empty", where=where, remedy="give a pattern such as [0-9]+")
    _check_text(pattern, where)
    if len(pattern) > MAX_PATTERN:
        raise UserError(
            f"the regular expression has {len(pattern):,} characters, at most {MAX_PATTERN:,} are taken", where=where, remedy="shorten it"
        )
    return Grammar(f"start: /{regex_to_lark(pattern, '')}/", "the regular expression", hints=_words([pattern]))


def choice(choices: Sequence[str], where: str = "choice") -> Grammar:
    """One of several texts.

    Raises:
        UserError: no choices, too many, or one that is no text.
    """
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise UserError("choices must be a list of texts, at least one", where=where, remedy='write ["yes", "no"]')
    if len(choices) > MAX_CHOICES:
        raise UserError(f"{len(choices):,} choices, at most {MAX_CHOICES:,} are taken", where=where, remedy="leave some out")
    for at, text in enumerate(choices):
        if not isinstance(text, str) or not text:
            raise UserError("a choice must be text, and not empty", where=f"{where}[{at}]", remedy="write it in quotes, or leave it out")
        _check_text(text, f"{where}[{at}]")
    _check_size(sum(len(text) for text in choices), where)
    return Grammar("start: " + " | ".join(_literal(text) for text in dict.fromkeys(choices)), "the list of choices")


def grammar(lark: str, where: str = "grammar") -> Grammar:
    """Text of a grammar in llguidance's variant of Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).

    Raises:
        UserError: no text, or too much of it.
    """
    if not isinstance(lark, str) or not lark.strip():
        raise UserError("a grammar must be text, and not empty", where=where, remedy="write at least a rule `start: …`")
    _check_text(lark, where)
    _check_size(len(lark), where)
    return Grammar(lark, "the grammar", hints=_words([lark]))


def calls(layout: CallLayout, tools: Sequence[Mapping[str, Any]], choice: str = "auto", parallel: bool = True) -> Grammar:
    """Function calls as a chat format writes them: names among the tools', arguments valid against their schemas.

    Args:
        layout: how the format writes calls.
        tools: what may be called, in OpenAI's shape or bare.
        choice: "auto" (text, or calls, or text and then calls), "none" (text without a call), "required" (calls), or a tool's name.
        parallel: whether several calls may stand in one answer.

    Raises:
        UserError: no tools, two of one name, an unknown name, or a schema that cannot be used.
    """
    schemas = _parameters(tools)
    if choice not in ("auto", "none", "required"):
        if choice not in schemas:
            raise UserError(f"no tool is called '{choice}'", where="tool_choice", remedy=did_you_mean(choice, schemas))
        schemas = {choice: schemas[choice]}
    # The lexer must see the end of free text and the marker as one lexeme that ends as soon as the marker is whole.
    marker = _escaped(layout.trigger)
    text = f"text: TEXT\nTEXT: /{_ANYTHING}/ & ~/{_ANYTHING}{marker}{_ANYTHING}/\n"
    if choice == "none":
        return Grammar("start: text\n" + text, "the list of tools")
    rest = layout.one[0][len(layout.trigger) :]
    single = f"{_literal(rest)} call {_literal(layout.one[1])}"
    several = ""
    if parallel and layout.many is not None:
        head, tail = layout.many
        several = f" | {_literal(head[len(layout.trigger) :])} call ({_literal(layout.between)} call)+ {_literal(tail)}"
    rules = [f"calls: {single}{several}", "call: " + " | ".join(f"call_{i}" for i in range(len(schemas)))]
    separators = (_escaped(layout.item_separator), _escaped(layout.key_separator))
    for i, (name, schema) in enumerate(schemas.items()):
        parts = [_literal(json.dumps(name, ensure_ascii=False)), _json(schema, separators, f"tools[{i}].function.parameters")]
        first, second = parts if layout.name_first else reversed(parts)
        before, between, behind = (_literal(text) for text in layout.call)
        rules.append(f"call_{i}: {before} {first} {between} {second} {behind}")
    if choice == "auto":
        start = f"start: text | head calls\nhead[lazy]: /{_ANYTHING}{marker}/\n{text}"
        return Grammar(start + "\n".join(rules), "the list of tools", layout.trigger)
    return Grammar(f"start: {_literal(layout.trigger)} calls\n" + "\n".join(rules), "the list of tools", "")


def _parameters(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of every tool's arguments, by its name."""
    out: dict[str, Any] = {}
    for at, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise UserError("a tool needs the function's name", where=f"tools[{at}].function.name", remedy="give it as text")
        if name in out:
            raise UserError(f"two tools are called '{name}'", where=f"tools[{at}].function.name", remedy="give each its own name")
        _check_text(name, f"tools[{at}].function.name")
        out[name] = _object_schema(function.get("parameters"), f"tools[{at}].function.parameters")
    if not out:
        raise UserError("there are no tools to call", where="tools", remedy="offer at least one, or leave tool_choice out")
    return out


def _object_schema(schema: Any, where: str) -> Any:
    """A schema of arguments, which are an object whether it says so or not; no parameters at all means no arguments."""
    if schema is None or schema == {}:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, Mapping):
        raise UserError("parameters must be a JSON schema, an object", where=where, remedy='write {"type": "object", "properties": {…}}')
    kind = schema.get("type")
    if kind not in (None, "object"):
        raise UserError(f"arguments are an object, not of type {kind!r}", where=f"{where}.type", remedy='write "type": "object"')
    closed: dict[str, Any] = {**schema, "type": "object"}
    # A function takes the parameters that it names; a schema that means more says so.
    if "properties" in schema and not set(schema) & {"additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"}:
        closed["additionalProperties"] = False
    return closed


def _json(schema: Any, separators: tuple[str, str], where: str) -> str:
    """The symbol of JSON that is valid against a schema; separators are regular expressions."""
    if schema is True:
        schema = {}
    elif schema is False:
        raise UserError("the schema allows nothing", where=where, remedy="give a schema that some value satisfies")
    if not isinstance(schema, Mapping):
        raise UserError("a JSON schema is an object", where=where, remedy='write {"type": "object", "properties": {…}}')
    _check_value(schema, where)
    options = {"whitespace_flexible": False, "item_separator": separators[0], "key_separator": separators[1]}
    text = json.dumps({**{key: value for key, value in schema.items() if key != "x-guidance"}, "x-guidance": options})
    _check_size(len(text), where)
    return f"%json {text}"


def _check_value(value: Any, where: str) -> None:
    """Refuse what is no JSON, and what is nested too deep, without recursion."""
    stack: list[tuple[Any, int]] = [(value, 0)]
    while stack:
        value, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise UserError(f"the schema is nested deeper than {MAX_DEPTH}", where=where, remedy="flatten it, or use $defs")
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise UserError(f"a key must be text, not {key!r}", where=where, remedy="write it in quotes")
                _check_text(key, where)
                stack.append((inner, depth + 1))
        elif isinstance(value, (list, tuple)):
            stack += [(inner, depth + 1) for inner in value]
        elif isinstance(value, str):
            _check_text(value, where)
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{value} is not a JSON number", where=where, remedy="write a finite number")
        elif value is not None and not isinstance(value, (bool, int, float)):
            raise UserError(f"{type(value).__name__} is not a JSON value", where=where, remedy="write JSON")


def _patterns(value: Any) -> list[str]:
    """Every regular expression of a schema that was checked."""
    if isinstance(value, Mapping):
        own = [value["pattern"]] if isinstance(value.get("pattern"), str) else []
        return own + [pattern for inner in value.values() for pattern in _patterns(inner)]
    if isinstance(value, (list, tuple)):
        return [pattern for inner in value for pattern in _patterns(inner)]
    return []


def _words(patterns: Sequence[str]) -> tuple[str, ...]:
    """Runs of plain characters in regular expressions, the longest ones."""
    found = {word for pattern in patterns for word in _PLAIN.findall(pattern)}
    return tuple(sorted(sorted(found), key=len, reverse=True)[:_HINTS])


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("text holds a lone surrogate, which is not Unicode", where=where, remedy="repair the text's encoding") from None


def _check_size(size: int, where: str) -> None:
    if size > MAX_BYTES:
        raise UserError(f"it is {size:,} bytes long, at most {MAX_BYTES:,} are taken", where=where, remedy="make it smaller")


def _literal(text: str) -> str:
    """A string of Lark."""
    return json.dumps(text)


def _escaped(text: str) -> str:
    """A regular expression for a text, fit for /…/."""
    return "".join(c if c.isalnum() or c in " _" else "\\n" if c == "\n" else f"\\x{{{ord(c):X}}}" for c in text)
