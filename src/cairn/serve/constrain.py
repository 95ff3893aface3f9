"""What a caller wants its answer to obey, as the engine's constraint. Knows bodies; the grammars are `generate`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cairn.generate.load import Loaded
from cairn.generate.matcher import Matcher
from cairn.serve.errors import bad
from cairn.serve.protocol import ChatBody, CompletionBody, NamedTool


def constraint(loaded: Loaded, body: ChatBody | CompletionBody, tools: list[dict[str, Any]]) -> Callable[[], Matcher] | None:
    """What makes a matcher for each answer, or None where anything may come.

    Raises:
        ApiError: what cannot be constrained.
    """
    for name in ("regex", "choice", "grammar"):
        if getattr(body, name) is not None:
            raise bad(f"'{name}' is not supported by this server", name, "unsupported_parameter")
    if isinstance(body, ChatBody):
        if body.response_format is not None and body.response_format.type != "text":
            raise bad("constrained answers are not supported by this server", "response_format", "unsupported_parameter")
        if body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool):
            raise bad("forced calls are not supported by this server", "tool_choice", "unsupported_parameter")
    return None
