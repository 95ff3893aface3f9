"""The reader of HelpSteer: a prompt, a response, and five attributes that people gave the response, whole numbers from 0 to 4.

HelpSteer2 writes earlier turns into the prompt, each begun by a marker; they are context, and only the response is learnt from.
"""

from __future__ import annotations

import math
import re
from typing import Any

from cairn.chat.attributes import built_in
from cairn.data.readers.base import leftovers, record_reader, text_of
from cairn.data.rows import Row, RowError

NAMES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _detect(record: dict[str, Any]) -> bool:
    return "prompt" in record and "response" in record and any(name in record for name in NAMES)


@record_reader("helpsteer", help="HelpSteer and HelpSteer2: prompt, response and five attributes from 0 to 4", detect=_detect)
def helpsteer(record: dict[str, Any]) -> Row:
    """The attributes stand at the last user turn. All five must be there: a row that lacks one is told, not filled with a default."""
    attributes = {name: _value(record, name) for name in NAMES}
    messages = _turns(text_of(record, "prompt"))
    messages[-1]["attributes"] = attributes
    messages.append({"role": "assistant", "content": text_of(record, "response")})
    return {"messages": messages, **leftovers(record, ("prompt", "response", *NAMES))}


def _value(record: dict[str, Any], name: str) -> int:
    value, known = record.get(name), built_in()[name]
    if value is None:
        raise RowError(name, f"the attribute '{name}' is missing", "add it, or read the file with --reader prompt_response")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value % 1:
        raise RowError(name, f"the attribute '{name}' is {value!r}", f"write a whole number from {known.minimum} to {known.maximum}")
    if not known.minimum <= value <= known.maximum:
        raise RowError(name, f"the attribute '{name}' is {value!r}, out of range", f"give {known.minimum} to {known.maximum}")
    return int(value)


def _turns(prompt: str) -> list[dict[str, Any]]:
    """The messages of a prompt, the user's last. The first turn bears no marker."""
    said = ["User", *_TURN.split(prompt)]
    messages: list[dict[str, Any]] = []
    for number, (role, text) in enumerate(zip(said[::2], said[1::2], strict=True)):
        expected = "User" if number % 2 == 0 else "Assistant"
        if role != expected or not text.strip():
            what = f"{role} says nothing in turn {number + 1}" if role == expected else f"turn {number + 1} is the {role.lower()}'s again"
            raise RowError("prompt", what, "let the turns alternate, or remove the row")
        # What was said before is nobody's rated answer.
        messages.append({"role": "user", "content": text} if role == "User" else {"role": "assistant", "content": text, "weight": 0})
    if len(messages) % 2 == 0:
        raise RowError("prompt", "the prompt ends with the assistant's turn", "end it with what the response answers, or remove the row")
    return messages
