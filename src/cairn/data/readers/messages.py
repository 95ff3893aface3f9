"""The reader of our own rows, and of OpenAI's: `{"messages": […], "tools"?: […]}`, `{"text": …}`, pairs and rankings.
Knows records of this shape; no format of chat, no tokenizer.
"""

from __future__ import annotations

from typing import Any

from cairn.data.readers.base import record_reader
from cairn.data.readers.turns import answer_list, messages_list, parse_json, ranked_list, tools_list
from cairn.data.rows import KEYS, Row


def _detect(record: dict[str, Any]) -> bool:
    return "messages" in record or ("text" in record and set(record) <= set(KEYS))


@record_reader("messages", help="OpenAI's messages, and Cairn's own rows: messages, tools, text, pairs and rankings", detect=_detect)
def messages(record: dict[str, Any]) -> Row:
    """Nested values may be JSON in a string, as tables hold them; a null is a key that is not there."""
    row: Row = {k: v for k, v in record.items() if v is not None}
    if "messages" in row:
        row["messages"] = messages_list(row["messages"], "messages")
    for key in ("chosen", "rejected"):
        if key in row:
            row[key] = answer_list(row[key], key)
    if "ranked" in row:
        row["ranked"] = ranked_list(row["ranked"], "ranked")
    if "functions" in row and "tools" not in row:  # the older spelling
        row["tools"] = [{"type": "function", "function": f} for f in tools_list(row.pop("functions"), "functions")]
    if "tools" in row:
        row["tools"] = tools_list(row["tools"])
        if not row["tools"]:
            del row["tools"]
    for key in ("attributes", "meta"):
        if isinstance(row.get(key), str):
            row[key] = parse_json(row[key], key)
    if "parallel_tool_calls" in row:  # a setting of OpenAI's training service, not a property of the dialogue
        del row["parallel_tool_calls"]
    return row
