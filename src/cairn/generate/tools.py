"""Python functions that a model may call: their schemas, and running them. Knows no model, no chat format and no session.

A schema is read off signature and docstring, or given. Whatever goes wrong with a call (an unknown name, wrong arguments, an
exception, a result that is no JSON, too long a run) becomes text for the model, which can then correct itself.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError

from cairn.errors import UserError, did_you_mean

_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?):\s*$")
_ENTRY = re.compile(r"^\s+\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


@dataclass(frozen=True)
class Called:
    """One call that was run.

    Attributes:
        name: the function's.
        arguments: as the model gave them.
        content: what the model is told: the result, or {"error": …}.
        failed: whether it is an error.
        seconds: how long it took.
    """

    name: str
    arguments: Mapping[str, Any]
    content: str
    failed: bool
    seconds: float


@dataclass(frozen=True)
class _Tool:
    run: Callable[..., Any]
    schema: dict[str, Any]
    model: type[BaseModel] | None


class Tools:
    """Functions by name, in the order in which they were registered.

    Args:
        functions: functions to register under their own names.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self._tools: dict[str, _Tool] = {}
        for function in functions:
            self.register(function)

    def register(self, function: Callable[..., Any], schema: Mapping[str, Any] | None = None) -> Callable[..., Any]:
        """Offer a function; it can stand as a decorator.

        Args:
            function: called with the arguments by keyword.
            schema: the tool in OpenAI's shape or bare; read off signature and docstring unless given.

        Raises:
            UserError: a second function of that name, or a signature that no schema can be made of.
        """
        if schema is None:
            inner, model = _described(function)
        else:
            inner, model = dict(schema.get("function", schema)), None
        name = inner.get("name")
        if not isinstance(name, str) or not name:
            raise UserError("a tool needs the function's name", where="schema.name", remedy="give it as text")
        if name in self._tools:
            raise UserError(f"two tools are called '{name}'", where=name, remedy="give each its own name")
        self._tools[name] = _Tool(function, {"type": "function", "function": inner}, model)
        return function

    def __len__(self) -> int:
        return len(self._tools)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """What a model is told of them, in OpenAI's shape."""
        return [tool.schema for tool in self._tools.values()]

    def run(self, name: str, arguments: Mapping[str, Any], seconds: float | None = None) -> Called:
        """Run a call, and turn whatever comes of it into text.

        Args:
            name: the function's.
            arguments: as the model gave them.
            seconds: how long to wait. A function cannot be stopped from outside: one that takes longer runs on in the background,
                and its result is dropped.
        """
        begun = time.perf_counter()
        done: list[tuple[str, bool]] = []

        def work() -> None:
            done.append(self._outcome(name, arguments))

        if seconds is None:
            work()
        else:
            thread = threading.Thread(target=work, name=f"tool {name}", daemon=True)
            thread.start()
            thread.join(max(seconds, 0.0))
        content, failed = done[0] if done else (_error("TimeoutError", f"no result within {seconds:.3g} seconds"), True)
        return Called(name, arguments, content, failed, time.perf_counter() - begun)

    def _outcome(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        tool = self._tools.get(name)
        if tool is None:
            return _error("LookupError", f"there is no function '{name}'; {did_you_mean(name, self._tools)}"), True
        try:
            given = dict(arguments)
            if tool.model is not None:
                checked = tool.model.model_validate(given)
                # Only what was given: the function's own defaults hold for the rest.
                given = {key: getattr(checked, key) for key in given}
            return _text(tool.run(**given)), False
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            return _error("TypeError", "; ".join(problems)), True
        except Exception as error:
            return _error(type(error).__name__, str(error)), True


def _text(result: Any) -> str:
    """A result as the model reads it: text as it is, everything else as JSON."""
    if isinstance(result, str):
        result.encode()  # a lone surrogate would fail later, in the rendering
        return result
    if isinstance(result, BaseModel):
        return result.model_dump_json()
    return json.dumps(result, ensure_ascii=False, allow_nan=False)


def _error(kind: str, message: str) -> str:
    clean = message.encode("utf-8", "replace").decode()
    return json.dumps({"error": f"{kind}: {clean}" if clean else kind}, ensure_ascii=False)


def _described(function: Callable[..., Any]) -> tuple[dict[str, Any], type[BaseModel]]:
    """(the function's schema, the model that checks its arguments)."""
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise UserError("the function has no name of its own", where=repr(function), remedy="use def, or give a schema")
    description, of_parameter = _read_docstring(inspect.getdoc(function) or "")
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UserError(f"a type is not known: {error}", where=name, remedy="import it, or give a schema") from None
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"the parameter '{parameter.name}' has no name to call it by", where=name, remedy="name each, or give a schema")
        if parameter.name not in hints:
            raise UserError(f"the parameter '{parameter.name}' has no type", where=name, remedy="annotate it, or give a schema")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    try:
        model = create_model(name, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields)
        parameters = _untitled(model.model_json_schema())
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUserError, NameError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"no schema can be made of its parameters: {first}", where=name, remedy="use plain types, or give a schema"
        ) from None
    for key, text in of_parameter.items():
        if key in parameters.get("properties", {}):
            parameters["properties"][key]["description"] = text
    parameters.pop("description", None)
    inner = {"name": name, "description": description, "parameters": {"type": "object", "properties": {}, **parameters}}
    return inner, model


def _untitled(schema: Any) -> Any:
    """A schema without the titles that pydantic makes of names: they only cost the model's context."""
    if isinstance(schema, dict):
        # Under "properties" a key is a parameter's name, which may be "title".
        return {
            key: {name: _untitled(inner) for name, inner in value.items()} if key in ("properties", "$defs") else _untitled(value)
            for key, value in schema.items()
            if key != "title" or not isinstance(value, str)
        }
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    return schema


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """(the first paragraph, what the section "Args:" says of each parameter) of a docstring in Google's style."""
    lines = text.splitlines()
    first = []
    for line in lines:
        if not line.strip() or _SECTION.match(line):
            break
        first.append(line.strip())
    entries: dict[str, str] = {}
    inside, last = False, ""
    for line in lines:
        section = _SECTION.match(line)
        if section:
            inside, last = section[1] in ("Args", "Arguments", "Parameters"), ""
        elif inside and (entry := _ENTRY.match(line)):
            last = entry[1]
            entries[last] = entry[2].strip()
        elif inside and last and line.strip():
            entries[last] = f"{entries[last]} {line.strip()}".strip()
    return " ".join(first), entries
