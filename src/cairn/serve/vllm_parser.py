"""A plugin for vLLM: reads function calls as our chat formats write them. Runs inside vLLM, which has no Cairn: imports none of it.

vLLM's own parser for `<tool_call>` streams wrong arguments where the arguments stand in front of the name, and reads no list of
calls; some of our formats write both. Here a call is told once it is complete.
"""

from __future__ import annotations

import json
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def read_calls(text: str, ended: bool = True) -> tuple[str, list[dict[str, Any]]]:
    """(content, calls as {"name", "arguments"}) of an answer's text.

    Args:
        text: the answer, as far as it has come.
        ended: whether that is all: then what is no proper call is content, and a last call may lack its closing mark.
    """
    at = text.find(OPEN)
    if at < 0:
        held = 0 if ended else _held(text)
        return text[: len(text) - held], []
    calls: list[dict[str, Any]] = []
    position = at
    while text.startswith(OPEN, position):
        found = _value(text, position + len(OPEN))
        value, end = found if found is not None else (None, position)
        read = [_call(item) for item in (value if isinstance(value, list) else [value])]
        closed = found is not None and text.startswith(CLOSE, end)
        whole = closed or (ended and end == len(text))
        if not whole or not read or any(call is None for call in read):
            if ended or (CLOSE in text[position:] and not calls):  # it will never be a call
                return text[: len(text) - (0 if ended else _held(text))], []
            return _head(text, at), calls
        calls += [call for call in read if call is not None]
        position = end + len(CLOSE) if closed else end
        following = _skip(text, position)
        if text.startswith(OPEN, following) or following == len(text):
            position = following
    rest = text[position:] if ended else ""
    return "\n".join(part for part in (_head(text, at), rest) if part), calls


def _head(text: str, at: int) -> str:
    return text[:at].removesuffix("\n")


def _held(text: str) -> int:
    """The length of the end that may yet become a call's beginning, the line break in front of it included."""
    start = "\n" + OPEN
    return max((n for mark in (start, OPEN) for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0)


def _value(text: str, position: int) -> tuple[Any, int] | None:
    try:
        value, end = json.JSONDecoder().raw_decode(text, _skip(text, position))
    except (ValueError, RecursionError):
        return None
    return value, _skip(text, end)


def _call(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments")
    if isinstance(arguments, str):
        found = _value(arguments, 0)
        arguments = found[0] if found and found[1] == len(arguments) else None
    return {"name": name, "arguments": arguments} if isinstance(name, str) and name and isinstance(arguments, dict) else None


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


try:
    # Where vLLM keeps these moved from version to version; its own parser always has them at hand.
    try:
        from vllm.tool_parsers import hermes_tool_parser as their
        from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager
    except ImportError:
        from vllm.entrypoints.openai.tool_parsers import hermes_tool_parser as their
        from vllm.entrypoints.openai.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager
except ImportError:
    pass  # read by whoever has no vLLM: a test
else:

    class CairnToolParser(ToolParser):
        """What vLLM calls: once with a whole answer, or again and again with what has come of it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._told = 0

        def extract_tool_calls(self, model_output: str, request: Any) -> Any:
            """Content and calls of a whole answer."""
            content, calls = read_calls(model_output)
            made = [
                their.ToolCall(type="function", function=their.FunctionCall(name=call["name"], arguments=_text(call))) for call in calls
            ]
            return their.ExtractedToolCallInformation(tools_called=bool(made), tool_calls=made, content=content or None)

        def extract_tool_calls_streaming(self, previous_text: str, current_text: str, *_: Any, **__: Any) -> Any:
            """What became certain with the last tokens, or None."""
            content, calls = read_calls(current_text, ended=False)
            more, self._told = content[self._told :], max(self._told, len(content))
            fresh = range(len(self.prev_tool_call_arr), len(calls))
            made = [
                their.DeltaToolCall(
                    index=i, type="function", id=their.make_tool_call_id(),
                    function=their.DeltaFunctionCall(name=calls[i]["name"], arguments=_text(calls[i])),
                )
                for i in fresh
            ]  # fmt: skip
            # What vLLM looks at when an answer ends: all of it was streamed.
            self.prev_tool_call_arr += [calls[i] for i in fresh]
            self.streamed_args_for_tool += [_text(calls[i]) for i in fresh]
            return their.DeltaMessage(content=more or None, tool_calls=made) if more or made else None

    def _text(call: dict[str, Any]) -> str:
        return json.dumps(call["arguments"], ensure_ascii=False)

    ToolParserManager.register_module("cairn", module=CairnToolParser)
