"""The reader of Dolly's `{"instruction", "context", "response", "category"}`, also where they are named as Alpaca does.
Knows records of this shape; no format of chat, no tokenizer.
"""

from __future__ import annotations

from typing import Any

from cairn.data.readers.alpaca import instruction_turns
from cairn.data.readers.base import leftovers, record_reader
from cairn.data.rows import Row


def _detect(record: dict[str, Any]) -> bool:
    return "instruction" in record and ("response" in record or ("category" in record and "output" in record))


@record_reader("dolly", help="instruction, context or input, response or output, category", detect=_detect)
def dolly(record: dict[str, Any]) -> Row:
    """The context follows the instruction after an empty line; the category is kept under `meta`."""
    extra = "context" if "context" in record else "input"
    answer = "response" if "response" in record else "output"
    return {"messages": instruction_turns(record, extra, answer), **leftovers(record, ("instruction", extra, answer))}
