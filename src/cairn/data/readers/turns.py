"""Turns in the shapes that files have them, as messages. No reader itself: what several readers share.

Inside Cairn a message's content is text and the arguments of its tool calls are objects; files hold contents in parts,
arguments as JSON in a string, and roles under a dozen names.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from cairn.data.rows import RowError

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "agent": "assistant", "bing": "assistant", "bard": "assistant", "chosen": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
    "function_call": "function_call",
}  # fmt: skip
"""The roles that files use, and ours; `function_call` is an assistant's turn that consists of a call."""


def role_of(value: Any, field: str) -> str:
    """Our name of a role.

    Raises:
        RowError: an unknown role.
    """
    role = ROLES.get(value.lower()) if isinstance(value, str) else None
    if role is None:
        raise RowError(field, f"unknown role {value!r}", "use system, user, assistant or tool")
    return role


def messages_list(value: Any, field: str) -> list[dict[str, Any]]:
    """A list of messages in OpenAI's shape, or its JSON in a string, as our messages.

    Raises:
        RowError: not a list of messages, an unknown role, or contents and arguments that cannot be read.
    """
    if isinstance(value, str):
        value = parse_json(value, field)
    if not isinstance(value, list):
        raise RowError(field, f"'{field}' must be a list of messages, not {type(value).__name__}", 'write [{"role": …, "content": …}, …]')
    return [message(item, f"{field}[{i}]") for i, item in enumerate(value)]


def message(value: Any, field: str) -> dict[str, Any]:
    """One message in OpenAI's shape as ours.

    Raises:
        RowError: see `messages_list`.
    """
    if not isinstance(value, dict):
        raise RowError(field, f"a message must be an object, not {type(value).__name__}", 'write {"role": …, "content": …}')
    # Tables fill in a null for whatever other rows hold.
    given = {k: v for k, v in value.items() if v is not None}
    if "role" not in given:
        raise RowError(f"{field}.role", "the message has no role", "add system, user, assistant or tool")
    role = role_of(given.pop("role"), f"{field}.role")
    if role == "function_call":
        remedy = "read the file with --reader sharegpt, or give 'tool_calls'"
        raise RowError(f"{field}.role", "'function_call' is a role of ShareGPT files", remedy)
    out: dict[str, Any] = {"role": role, "content": _content(given.pop("content", ""), f"{field}.content")}
    calls = given.pop("tool_calls", None)
    if calls is None and "function_call" in given:  # the older spelling of one call
        calls = [{"type": "function", "function": given.pop("function_call")}]
    if calls:
        if not isinstance(calls, list):
            calls = parse_json(calls, f"{field}.tool_calls") if isinstance(calls, str) else [calls]
        out["tool_calls"] = [tool_call(call, f"{field}.tool_calls[{j}]") for j, call in enumerate(calls)]
    return {**out, **given}


def tool_call(value: Any, field: str) -> dict[str, Any]:
    """One tool call, its arguments as an object.

    Raises:
        RowError: no name, or arguments that are no object.
    """
    if not isinstance(value, dict):
        remedy = 'write {"type": "function", "function": {"name", "arguments"}}'
        raise RowError(field, f"a tool call must be an object, not {type(value).__name__}", remedy)
    call = {k: v for k, v in value.items() if v is not None}
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{field}.function.name", "the tool call has no name", "add the function's name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = parse_json(arguments or "{}", f"{field}.function.arguments")
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(f"{field}.function.arguments", "arguments must be an object", "write them as a JSON object")
    out: dict[str, Any] = {"id": call["id"]} if "id" in call and "function" in call else {}
    return {**out, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def ranked_list(value: Any, field: str) -> list[list[dict[str, Any]]]:
    """Answers in the order of their rank, the best one first, each as a list of our messages.

    An answer is text, a message, a list of messages, or `{"messages": […]}`. Answers stand in their order, unless each has a
    "rank" (a number, the lowest is the best).

    Raises:
        RowError: no list of answers, answers with and without rank, or a tie: two of one rank, or several in one place.
    """
    if isinstance(value, str):
        value = parse_json(value, field)
    if not isinstance(value, list):
        raise RowError(field, f"'{field}' must be a list of answers, not {type(value).__name__}", "write the best answer first")
    ranks = {i: item["rank"] for i, item in enumerate(value) if isinstance(item, dict) and item.get("rank") is not None}
    answers = [_ranked(item, f"{field}[{i}]") for i, item in enumerate(value)]
    if not ranks:
        return answers
    for i in range(len(value)):
        if not isinstance(ranks.get(i), int | float) or isinstance(ranks[i], bool):
            raise RowError(f"{field}[{i}].rank", "the answer has no rank, or none that is a number", "give every answer a rank, or none")
    order = sorted(range(len(value)), key=lambda i: ranks[i])
    for one, other in pairwise(order):
        if ranks[one] == ranks[other]:
            what = f"a tie: {field}[{one}] and {field}[{other}] have the same rank {ranks[one]}"
            raise RowError(f"{field}[{other}].rank", what, "remove one of them: a ranking is learnt from its order")
    return [answers[i] for i in order]


def answer_list(value: Any, field: str) -> list[dict[str, Any]]:
    """An answer as a list of our messages: such a list, its JSON in a string, or plain text.

    Raises:
        RowError: none of these.
    """
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [{"role": "assistant", "content": value}]
    return messages_list(value, field)


def _ranked(value: Any, field: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if isinstance(value, dict):
        given = {k: v for k, v in value.items() if k != "rank"}
        return messages_list(given["messages"], f"{field}.messages") if set(given) == {"messages"} else [message(given, field)]
    if isinstance(value, list) and any(isinstance(item, list) for item in value):
        raise RowError(field, "a tie: several answers in one place", "keep one of them: a ranking is learnt from its order")
    return messages_list(value, field)


def tools_list(value: Any, field: str = "tools") -> list[Any]:
    """Tool schemas, given as a list or as its JSON in a string, unchanged.

    Raises:
        RowError: neither.
    """
    if isinstance(value, str):
        value = parse_json(value, field)
    if not isinstance(value, list):
        raise RowError(field, f"'{field}' must be a list of tools, not {type(value).__name__}", "write a JSON list")
    return value


def parse_json(text: str, field: str) -> Any:
    """The value of JSON inside a string.

    Raises:
        RowError: it is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise RowError(field, f"not valid JSON: {error}", "correct the JSON in this string") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _content(value: Any, field: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = []
        for i, part in enumerate(value):
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                raise RowError(f"{field}[{i}]", "only parts of text can be read", "remove pictures and sound, or the row")
            parts.append(part["text"])
        return "".join(parts)
    raise RowError(field, f"content must be text, not {type(value).__name__}", "write it as a string")
