"""OpenAI's messages and tools to ours, which are the rows' own. Knows shapes only; what a format can render it says itself."""

from __future__ import annotations

import json
import re
from typing import Any

from cairn.serve.errors import bad
from cairn.serve.protocol import NamedTool

_KEPT = ("role", "content", "tool_calls", "tool_call_id", "name", "attributes")
_ANSWER_ONLY = ("refusal", "audio", "annotations", "function_call", "reasoning_content")
"""Keys of an answer that clients send back with it; empty they say nothing."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def read_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as the format renders it.

    Raises:
        ApiError: a part that is no text, arguments that are no JSON object, or nothing to be answered.
    """
    read = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if read and read[-1].get("role") not in ("user", "tool"):
        raise bad("the last message must be the user's or a tool's: it is what gets an answer", f"messages[{len(read) - 1}].role")
    return read


def _message(message: dict[str, Any], at: str) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if value is not None}
    for key in _ANSWER_ONLY:
        if kept.pop(key, None):
            raise bad(f"'{key}' is not supported; remove it", f"{at}.{key}")
    unknown = next((key for key in kept if key not in _KEPT), None)
    if unknown is not None:
        raise bad(f"unknown key '{unknown[:100]}' in a message; remove it", at)
    if kept.get("role") == "developer":
        kept["role"] = "system"
    if isinstance(kept.get("content"), list):
        kept["content"] = _joined(kept["content"], f"{at}.content")
    if not kept.get("tool_calls"):
        kept.pop("tool_calls", None)
    elif isinstance(kept["tool_calls"], list):
        kept["tool_calls"] = [_call(call, f"{at}.tool_calls[{i}]") for i, call in enumerate(kept["tool_calls"])]
    return kept


def _joined(parts: list[Any], at: str) -> str:
    """The text of a content that comes in parts."""
    for i, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise bad(f"a content part of type {str(kind)[:60]!r}; this model reads text parts alone", f"{at}[{i}]")
    return "".join(part["text"] for part in parts)


def _call(call: Any, at: str) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call  # whatever is wrong here is told by the check of messages, which knows the remedy
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise bad("the arguments of a call must be the text of a JSON object", f"{at}.function.arguments")
    return {"type": "function", "function": {"name": function.get("name"), "arguments": arguments}}


def read_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The functions that may be called, with what the model was trained to see of them and nothing else.

    Raises:
        ApiError: a tool that is no function, a name twice, or parameters that are no schema.
    """
    read: list[dict[str, Any]] = []
    names: set[str] = set()
    for i, tool in enumerate(tools):
        at = f"tools[{i}]"
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise bad('a tool must read {"type": "function", "function": {…}}', at)
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise bad("a function's name is 1 to 64 letters, digits, dots, dashes or underscores", f"{at}.function.name")
        if name in names:
            raise bad(f"two functions are called '{name}'; give each its own name", f"{at}.function.name", "duplicate_tool")
        names.add(name)
        if not isinstance(function.get("description") or "", str):
            raise bad("a description must be text", f"{at}.function.description")
        if not isinstance(function.get("parameters") or {}, dict):
            raise bad("parameters must be a JSON schema, an object", f"{at}.function.parameters")
        unknown = next((key for key in function if key not in ("name", "description", "parameters", "strict")), None)
        if unknown is not None:
            raise bad(f"unknown key '{unknown[:100]}' in a function; remove it", f"{at}.function")
        # `strict` is about the constraint, not for the model's eyes: no row that it learnt from has it.
        shown = {key: value for key, value in function.items() if key != "strict" and value is not None}
        read.append({"type": "function", "function": shown})
    return read


def offered(tools: list[dict[str, Any]], choice: str | NamedTool | None) -> list[dict[str, Any]]:
    """The tools that the model gets to see: none where it may call none.

    Raises:
        ApiError: a choice that the tools do not hold.
    """
    if choice == "none":
        return []
    if not tools and choice == "required":
        raise bad("tool_choice is 'required', and there are no tools", "tool_choice")
    if isinstance(choice, NamedTool) and all(tool["function"]["name"] != choice.function.name for tool in tools):
        raise bad(f"tool_choice names '{choice.function.name[:100]}', which is not among the tools", "tool_choice")
    return tools
