"""Whether an answer calls the expected functions. Knows messages as plain dicts; nothing of formats or models."""

from __future__ import annotations

from typing import Any

from cairn.score.json_match import json_equal, parse_json
from cairn.score.metric import Metric


def call_of(call: Any) -> dict[str, Any] | None:
    """`{"name", "arguments"}` out of either shape of a call (bare, or inside OpenAI's `function`), or None where it is no call.

    Arguments that are JSON text are read; text that is no JSON object makes it no call.
    """
    if not isinstance(call, dict):
        return None
    inner = call.get("function", call)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        return None
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except ValueError:
            return None
    return {"name": inner["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def expected_calls(expected: Any) -> list[dict[str, Any]]:
    """The calls that a row expects: one call, a list of them, or none (None, an empty list or text that is no call).

    Raises:
        ValueError: where something stands that is meant as a call but is none; a test row must not be right by accident.
    """
    if expected is None or isinstance(expected, str):
        return []
    items = expected if isinstance(expected, list) else [expected]
    calls = [call_of(item) for item in items]
    if any(call is None for call in calls):
        raise ValueError(f"not a function call: {expected!r}"[:200])
    return [call for call in calls if call is not None]


def call_match(expected: Any, answer: dict[str, Any]) -> bool:
    """Whether the message `answer` makes exactly the expected calls: names and arguments equal as JSON values, in any order.

    Where no call is expected the answer is right when it makes none and says something.
    """
    wanted = expected_calls(expected)
    made = [call_of(call) for call in answer.get("tool_calls") or []]
    if not wanted:
        return not made and bool((answer.get("content") or "").strip())
    if len(made) != len(wanted):
        return False
    left = list(wanted)
    for call in made:
        # Equality is an equivalence, so taking the first equal one never spoils a later match.
        at = next((i for i, want in enumerate(left) if json_equal(want, call)), None)
        if at is None:
            return False
        del left[at]
    return True


METRICS = {
    "calls": Metric(
        "exactly the expected functions are called, names and arguments equal; no call where none is expected",
        lambda expected, answer, meta: float(call_match(expected, dict(answer))),
    )
}
