"""The reader of preferences: `{"prompt", "chosen", "rejected"}` as text or messages, and HH-RLHF's two whole transcripts.
Knows records of this shape; no format of chat, no tokenizer.
"""

from __future__ import annotations

import re
from typing import Any

from cairn.data.readers.base import leftovers, record_reader, text_of
from cairn.data.readers.turns import messages_list
from cairn.data.rows import Row, RowError

_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def _detect(record: dict[str, Any]) -> bool:
    return "chosen" in record and "rejected" in record and "messages" not in record


@record_reader("preference", help="prompt, chosen, rejected (text or messages), and HH-RLHF's transcripts", detect=_detect)
def preference(record: dict[str, Any]) -> Row:
    """What both conversations begin with is the prompt; the rest are the two continuations."""
    prompt = _prompt(record)
    chosen, rejected = (_continuation(record, key, prompt) for key in ("chosen", "rejected"))
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared and shared == len(chosen) == len(rejected):
        raise RowError("rejected", "chosen and rejected are the same", "remove the row: it prefers nothing")
    if shared == min(len(chosen), len(rejected)):
        key = "chosen" if len(chosen) == shared else "rejected"
        raise RowError(key, "one conversation is the beginning of the other", "remove the row, or complete it")
    row: Row = {"messages": prompt + chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    return {**row, **leftovers(record, ("prompt", "system", "chosen", "rejected"))}


def _prompt(record: dict[str, Any]) -> list[dict[str, Any]]:
    system = text_of(record, "system", optional=True)
    before = [{"role": "system", "content": system}] if system else []
    prompt = record.get("prompt")
    if prompt is None:
        return before
    if isinstance(prompt, list):
        return before + messages_list(prompt, "prompt")
    text = text_of(record, "prompt")
    return before + (_transcript(text, "prompt") if _is_transcript(text) else [{"role": "user", "content": text}])


def _continuation(record: dict[str, Any], key: str, prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    value = record.get(key)
    if isinstance(value, list):
        turns = messages_list(value, key)
        # Some sets repeat the prompt in front of both answers.
        return turns[len(prompt) :] if prompt and turns[: len(prompt)] == prompt else turns
    text = text_of(record, key)
    if _is_transcript(text):
        return _transcript(text, key)
    if not prompt:
        what = "the row has no prompt, and its conversations are no transcripts"
        raise RowError("prompt", what, "add 'prompt', or begin each with 'Human:'")
    return [{"role": "assistant", "content": text}]


def _is_transcript(text: str) -> bool:
    return text.lstrip("\n").startswith(("Human:", "Assistant:"))


def _transcript(text: str, field: str) -> list[dict[str, Any]]:
    """HH-RLHF's turns, which begin with `Human:` or `Assistant:` after an empty line."""
    pieces = _SPEAKER.split("\n\n" + text.lstrip("\n"))
    turns = []
    for i, (speaker, said) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True)):
        if not said.strip():
            raise RowError(f"{field}, turn {i + 1}", f"{speaker} says nothing in turn {i + 1}", "remove the row")
        turns.append({"role": "user" if speaker == "Human" else "assistant", "content": said.strip()})
    return turns
