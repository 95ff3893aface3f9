"""What a caller wants its answer to obey, as the engine's constraint. Knows bodies; the grammars are `generate`'s.

Where tools are offered every call is held to them: its name is one of theirs and its arguments obey that one's schema.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

from cairn.errors import UserError
from cairn.generate import grammar as grammars
from cairn.generate.constrain import Compiled
from cairn.generate.grammar import Grammar
from cairn.generate.load import Loaded
from cairn.serve.errors import bad, from_user_error
from cairn.serve.protocol import ChatBody, CompletionBody, NamedTool

_MAKING = Lock()
"""Two requests at once must not make two constrainers: each has a vocabulary and a process."""


def constraint(loaded: Loaded, body: ChatBody | CompletionBody, tools: list[dict[str, Any]]) -> Compiled | None:
    """What makes a matcher for each answer, or None where anything may come. May take seconds.

    Args:
        loaded: the model.
        body: what is asked.
        tools: what is offered.

    Raises:
        ApiError: what cannot be used as a constraint.
    """
    param = body.constrained
    if param is not None and tools:
        raise bad(f"{param} and tools cannot hold one answer at once; leave one out, or set tool_choice to 'none'", param)
    try:
        grammar = _calls(loaded, body, tools) if tools and isinstance(body, ChatBody) else _grammar(body)
        if grammar is None:
            return None
        with _MAKING:
            constrainer = loaded.session.constrainer if isinstance(body, ChatBody) else loaded.constrainer
        return constrainer.compile(grammar)
    except UserError as error:
        raise from_user_error(error, param or "tools") from None


def check_budget(compiled: Compiled | None, limit: int, param: str) -> None:
    """Refuse a budget that no answer under the constraint fits into.

    Raises:
        ApiError: the shortest known one is longer.
    """
    if compiled is not None:
        try:
            compiled.check(limit)
        except UserError as error:
            raise from_user_error(error, param) from None


def _calls(loaded: Loaded, body: ChatBody, tools: list[dict[str, Any]]) -> Grammar:
    choice = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else body.tool_choice or "auto"
    return grammars.calls(loaded.session.layout, tools, choice, body.parallel_tool_calls)


def _grammar(body: ChatBody | CompletionBody) -> Grammar | None:
    if body.regex is not None:
        return grammars.regex(body.regex)
    if body.choice is not None:
        return grammars.choice(body.choice)
    if body.grammar is not None:
        return grammars.grammar(body.grammar)
    form = body.response_format if isinstance(body, ChatBody) else None
    if form is None or form.type == "text":
        return None
    if form.json_schema is None:
        return grammars.json_object()
    return grammars.json_schema(form.json_schema.schema_, "response_format.json_schema.schema")
