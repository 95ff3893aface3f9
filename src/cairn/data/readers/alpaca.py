"""The reader of Alpaca's `{"instruction", "input", "output"}`, with the `system` and `history` that later sets added.
Knows records of this shape; no format of chat, no tokenizer.
"""

from __future__ import annotations

from typing import Any

from cairn.data.readers.base import leftovers, record_reader, text_of
from cairn.data.rows import Row, RowError


def _detect(record: dict[str, Any]) -> bool:
    return "instruction" in record and "output" in record and "category" not in record


@record_reader("alpaca", help="instruction, input, output (JSON list or JSON Lines)", detect=_detect)
def alpaca(record: dict[str, Any]) -> Row:
    """The input follows the instruction after an empty line."""
    turns = [{"role": "system", "content": system}] if (system := text_of(record, "system", optional=True)) else []
    for i, pair in enumerate(record.get("history") or ()):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
            raise RowError(f"history[{i}]", "a turn of the history must be [question, answer]", "write two strings")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    turns += instruction_turns(record, "input", "output")
    return {"messages": turns, **leftovers(record, ("system", "history", "instruction", "input", "output"))}


def instruction_turns(record: dict[str, Any], extra: str, answer: str) -> list[dict[str, Any]]:
    """The question (instruction, then what stands under `extra`) and its answer."""
    question = text_of(record, "instruction")
    if more := text_of(record, extra, optional=True).strip():
        question = f"{question}\n\n{more}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": text_of(record, answer)}]
