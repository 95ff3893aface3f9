"""The reader of questions with one answer under any of the usual names, and of utterance lists with named speakers.
Knows records of this shape; no format of chat, no tokenizer.
"""

from __future__ import annotations

from typing import Any

from cairn.data.readers import helpsteer
from cairn.data.readers.base import leftovers, record_reader, text_of
from cairn.data.readers.turns import role_of
from cairn.data.rows import Row, RowError

PAIRS = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("query", "response"), ("input", "output"), ("Q", "A"))
"""The names of a question and its answer, the first that fits wins."""


def _pair(record: dict[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if all(key in record for key in pair)), None)


def _detect(record: dict[str, Any]) -> bool:
    if isinstance(record.get("utterances"), list):
        return True
    pair = _pair(record)
    plain = pair is not None and all(isinstance(record[key], str) for key in pair)
    # Rated ones are HelpSteer's, whose ratings would end as unknown keys here.
    return plain and "instruction" not in record and not any(name in record for name in helpsteer.NAMES)


@record_reader("prompt_response", help="prompt/response, question/answer, Q/A and the like, and utterances with names", detect=_detect)
def prompt_response(record: dict[str, Any]) -> Row:
    """A `system` text beside them opens the dialogue."""
    if "utterances" in record:
        return {"messages": _utterances(record["utterances"]), **leftovers(record, ("utterances",))}
    pair = _pair(record)
    if pair is None:
        raise RowError("prompt", "no question with its answer", "name them as one of " + ", ".join("/".join(p) for p in PAIRS))
    turns = [{"role": "system", "content": system}] if (system := text_of(record, "system", optional=True)) else []
    turns += [{"role": "user", "content": text_of(record, pair[0])}, {"role": "assistant", "content": text_of(record, pair[1])}]
    return {"messages": turns, **leftovers(record, ("system", *pair))}


def _utterances(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise RowError("utterances", "no utterances", "remove the row, or fill them in")
    turns = []
    for i, turn in enumerate(value):
        if not isinstance(turn, dict) or not isinstance(turn.get("text"), str):
            raise RowError(f"utterances[{i}].text", "an utterance must have text", 'write {"name": …, "text": …}')
        turns.append({"role": role_of(turn.get("name"), f"utterances[{i}].name"), "content": turn["text"]})
    return turns
