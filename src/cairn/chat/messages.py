"""What a conversation is, and what is wrong with one. Knows OpenAI's message shape; no format, no file.

A message is a plain dict: "role" (system, user, assistant, tool), "content" (text), for the assistant "tool_calls"
([{"type": "function", "function": {"name": text, "arguments": object}}]) and "weight" (0: do not learn from it).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cairn.errors import UserError, did_you_mean

ROLES = ("system", "user", "assistant", "tool")
KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "weight", "attributes", "reasoning_content")
_NEXT = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
_ORDER_REMEDY = {
    ("user", "user"): "join the two user messages into one",
    ("assistant", "assistant"): "join the two assistant messages into one",
    ("start", "assistant"): "put the user's message in front, or move this text into a system message",
    ("start", "tool"): "put the user's message and the assistant's tool call in front",
    ("user", "tool"): "put the assistant's tool call in front",
    ("tool", "user"): "put the assistant's answer to the tool's result in front",
}


class MessageError(UserError):
    """Something wrong with a conversation. `where` is the field's path, such as `messages[2].content`."""


def check_messages(
    messages: Any,
    *,
    tools: Any = None,
    attributes: Any = None,
    field: str = "messages",
    training: bool = True,
) -> None:
    """Check a conversation, and its tools and attributes where given.

    Args:
        messages: the list of messages.
        tools: function schemas in OpenAI's shape.
        attributes: attribute values of the conversation (which ones exist is the format's business).
        field: how to name the list in errors.
        training: also refuse what no row should teach: empty turns and NUL bytes.

    Raises:
        MessageError: the first problem; what, where (the field) and what to do.
    """
    for error in problems(messages, tools=tools, attributes=attributes, field=field, training=training):
        raise error


def problems(
    messages: Any, *, tools: Any = None, attributes: Any = None, field: str = "messages", training: bool = True
) -> Iterator[MessageError]:
    """Every problem of a conversation, in order."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        yield MessageError(
            f"must be a list of messages, not {_kind(messages)}",
            where=field,
            remedy='write [{"role": "user", "content": "…"}, …]',
        )
        return
    if not messages:
        yield MessageError("no messages", where=field, remedy="give at least one user message")
        return
    before = "start"
    for i, message in enumerate(messages):
        at = f"{field}[{i}]"
        if not isinstance(message, Mapping):
            yield MessageError(
                f"a message must be an object, not {_kind(message)}",
                where=at,
                remedy='write {"role": "user", "content": "…"}',
            )
            before = "unknown"
            continue
        yield from _shape_problems(message, at, training)
        role = message.get("role")
        if role in ROLES:
            yield from _order_problems(messages, i, before, at)
        before = role if role in ROLES else "unknown"
    if all(isinstance(m, Mapping) and m.get("role") == "system" for m in messages):
        yield MessageError("no user message", where=field, remedy="give at least one user message")
    yield from _tool_problems(tools, training)
    if attributes is not None:
        yield from _attribute_problems(attributes, "attributes")


def _order_problems(messages: Sequence[Any], i: int, before: str, at: str) -> Iterator[MessageError]:
    role = messages[i]["role"]
    if before == "unknown":
        return
    if role not in _NEXT[before]:
        place = "at the start" if before == "start" else f"after '{before}'"
        remedy = "a system message may stand only at the start" if role == "system" else _ORDER_REMEDY.get((before, role), "")
        yield MessageError(
            f"'{role}' cannot stand {place}",
            where=f"{at}.role",
            remedy=remedy or "expected " + " or ".join(_NEXT[before]),
        )
    elif role == "tool" and before == "assistant" and not messages[i - 1].get("tool_calls"):
        yield MessageError(
            "a tool's result without a call: the assistant turn before it has no tool_calls",
            where=at,
            remedy="add the call, or remove this message",
        )


def _shape_problems(message: Mapping[str, Any], at: str, training: bool) -> Iterator[MessageError]:
    for key, value in message.items():
        if key not in KEYS and value is not None:
            yield MessageError(f"unknown key '{key}'", where=f"{at}.{key}", remedy=f"{did_you_mean(str(key), KEYS)}; else remove it")
    role = message.get("role")
    if role not in ROLES:
        what = "the role is missing" if role is None else f"unknown role {role!r}"
        yield MessageError(what, where=f"{at}.role", remedy=did_you_mean(str(role or ""), ROLES))
        return
    calls, content = message.get("tool_calls"), message.get("content")
    if calls and role != "assistant":
        yield MessageError(
            f"only the assistant calls tools, not '{role}'",
            where=f"{at}.tool_calls",
            remedy="remove it, or correct the role",
        )
    if content is None and not calls:
        yield MessageError("the message has no content", where=f"{at}.content", remedy='give its text as "content"')
    elif content is not None and not isinstance(content, str):
        remedy = "join the text parts into one string" if isinstance(content, list) else "write it as a string"
        yield MessageError(f"content must be text, not {_kind(content)}", where=f"{at}.content", remedy=remedy)
    elif isinstance(content, str):
        yield from value_problems(content, f"{at}.content", training)
        if training and not content.strip() and not calls and role in ("assistant", "user"):
            yield MessageError(f"the {role} turn is empty", where=f"{at}.content", remedy="give its text, or remove the row")
    if calls is not None:
        yield from _call_problems(calls, f"{at}.tool_calls", training)
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        yield MessageError(
            f"weight must be 0 or 1, not {weight!r}",
            where=f"{at}.weight",
            remedy="write 0 for a turn not to learn from, 1 otherwise",
        )
    if message.get("attributes") is not None:
        if role != "user":
            yield MessageError("attributes stand at user turns", where=f"{at}.attributes", remedy="move them to the user message")
        yield from _attribute_problems(message["attributes"], f"{at}.attributes")


def _call_problems(calls: Any, at: str, training: bool) -> Iterator[MessageError]:
    if not isinstance(calls, list):
        yield MessageError(
            f"tool_calls must be a list, not {_kind(calls)}",
            where=at,
            remedy='write [{"type": "function", "function": {…}}]',
        )
        return
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            remedy = 'write {"type": "function", "function": {"name": "…", "arguments": {…}}}'
            yield MessageError("a tool call needs an object 'function'", where=f"{at}[{i}].function", remedy=remedy)
            continue
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str) or not name:
            yield MessageError("a tool call needs the function's name", where=f"{at}[{i}].function.name", remedy="give it as text")
        if not isinstance(arguments, Mapping):
            remedy = "turn the JSON text into an object" if isinstance(arguments, str) else "write {} where there are none"
            yield MessageError(
                f"arguments must be an object, not {_kind(arguments)}",
                where=f"{at}[{i}].function.arguments",
                remedy=remedy,
            )
        yield from value_problems(function, f"{at}[{i}].function", training)


def _tool_problems(tools: Any, training: bool) -> Iterator[MessageError]:
    if tools is None:
        return
    if not isinstance(tools, list):
        yield MessageError(
            f"tools must be a list, not {_kind(tools)}",
            where="tools",
            remedy='write [{"type": "function", "function": {…}}]',
        )
        return
    for i, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            remedy = 'write {"type": "function", "function": {"name": "…", "description": "…", "parameters": {…}}}'
            yield MessageError("a tool needs the function's name", where=f"tools[{i}].function.name", remedy=remedy)
            continue
        yield from value_problems(tool, f"tools[{i}]", training)


def _attribute_problems(attributes: Any, at: str) -> Iterator[MessageError]:
    if not isinstance(attributes, Mapping):
        yield MessageError(f"attributes must be an object, not {_kind(attributes)}", where=at, remedy='write {"name": value}')
        return
    for name, value in attributes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            yield MessageError(
                f"the attribute must be a whole number, not {value!r}",
                where=f"{at}.{name}",
                remedy="write it as a number without quotes",
            )


def value_problems(value: Any, at: str, training: bool = True) -> Iterator[MessageError]:
    """Text that no tokenizer should see and what no JSON text can hold, wherever it stands inside a value that `at` names."""
    if isinstance(value, str):
        found = text_problem(value, training)
        if found:
            yield MessageError(found[0], where=at, remedy=found[1])
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield MessageError(f"a key must be text, not {key!r}", where=at, remedy="write it in quotes")
            else:
                yield from value_problems(key, at, training)
                yield from value_problems(inner, f"{at}.{key}", training)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from value_problems(inner, f"{at}[{i}]", training)
    elif isinstance(value, float) and not math.isfinite(value):
        yield MessageError(f"{value} is not a JSON number", where=at, remedy="write null or a number")
    elif value is not None and not isinstance(value, (bool, int, float)):
        yield MessageError(
            f"{type(value).__name__} is not a JSON value",
            where=at,
            remedy="write text, a number, true, false, null, a list or an object",
        )


def text_problem(text: str, training: bool = True) -> tuple[str, str] | None:
    """(problem, remedy) of text that no tokenizer should see: with a lone surrogate, or to learn from with a NUL byte. Else None."""
    if training and "\0" in text:
        return f"a NUL byte at character {text.index(chr(0))}", "remove it: it is a sign of a broken export or a binary file"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}", "repair the text's encoding"
    return None


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
