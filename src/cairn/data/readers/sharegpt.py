"""The reader of ShareGPT's `{"conversations": [{"from", "value"}]}`, with its tool turns, `system` and `tools`.
Knows records of this shape; no format of chat, no tokenizer.
"""

from __future__ import annotations

from typing import Any

from cairn.data.readers.base import leftovers, record_reader, text_of
from cairn.data.readers.turns import message, parse_json, role_of, tool_call, tools_list
from cairn.data.rows import Row, RowError

KEYS = ("conversations", "conversation")


def _detect(record: dict[str, Any]) -> bool:
    return any(isinstance(record.get(key), list | str) for key in KEYS) and "messages" not in record


@record_reader("sharegpt", help="conversations of from/value turns: system, human, gpt, function_call, observation, tool", detect=_detect)
def sharegpt(record: dict[str, Any]) -> Row:
    """Turns that already have `role` and `content` are taken too."""
    key = next((k for k in KEYS if k in record), KEYS[0])
    given = record.get(key)
    if isinstance(given, str):
        given = parse_json(given, key)
    if not isinstance(given, list):
        raise RowError(key, f"'{key}' must be a list of turns", 'write [{"from": …, "value": …}, …]')
    turns = [_turn(turn, f"{key}[{i}]") for i, turn in enumerate(given)]
    if (system := text_of(record, "system", optional=True)) and not (turns and turns[0]["role"] == "system"):
        turns.insert(0, {"role": "system", "content": system})
    row: Row = {"messages": turns}
    tools = record.get("tools")
    if tools and (listed := tools_list(tools)):
        row["tools"] = listed
    return {**row, **leftovers(record, (key, "system", "tools"))}


def _turn(turn: Any, field: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise RowError(field, "a turn must be an object", 'write {"from": …, "value": …}')
    if "role" in turn and "from" not in turn:
        return message(turn, field)
    role, value = role_of(turn.get("from"), f"{field}.from"), turn.get("value")
    if role == "function_call":
        calls = parse_json(value, f"{field}.value") if isinstance(value, str) else value
        calls = calls if isinstance(calls, list) else [calls]
        return {"role": "assistant", "content": "", "tool_calls": [tool_call(call, f"{field}.value") for call in calls]}
    if not isinstance(value, str):
        raise RowError(f"{field}.value", f"'value' must be text, not {type(value).__name__}", "write it as a string")
    out: dict[str, Any] = {"role": role, "content": value}
    if isinstance(turn.get("weight"), int | float):
        out["weight"] = turn["weight"]
    return out
