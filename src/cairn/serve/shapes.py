"""Deltas to OpenAI's JSON: whole answers and chunks of a stream. Knows no engine.

A whole answer is put together out of the same deltas that a stream tells one by one.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cairn.serve.answer import Answer, Call, Delta, Token
from cairn.tokenizer.load import Tokenizer

LEAST = -9999.0
"""The log-probability that stands for zero probability, as OpenAI writes it: JSON has no infinity."""


@dataclass
class Kind:
    """What one response says in every chunk.

    Attributes:
        chat: a chat completion; else a plain one.
        model: the model's name.
        tokenizer: writes tokens as text.
        logprobs: whether they are told.
        deterministic: whether the answer's bytes are the same in any company.
        fingerprint: names what the model runs with; see `cairn.serve.fingerprint`.
        cache: where the answer came from, if it was not computed for this request.
    """

    chat: bool
    model: str
    tokenizer: Tokenizer
    logprobs: bool
    deterministic: bool
    fingerprint: str
    cache: dict[str, Any] | None = None
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"

    def head(self, stream: bool) -> dict[str, Any]:
        """The fields in front."""
        name = ("chat.completion.chunk" if stream else "chat.completion") if self.chat else "text_completion"
        head = {"id": self.id, "object": name, "created": self.created, "model": self.model}
        head |= {"system_fingerprint": self.fingerprint, "deterministic": self.deterministic}
        return head if self.cache is None else {**head, "cache": self.cache}


def usage(prompt: int, cached: int, generated: int) -> dict[str, Any]:
    """What was read and written, in tokens; a prompt counts once, however many answers it gets."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


# Whole answers


def whole(kind: Kind, answers: Sequence[list[Delta]], used: dict[str, Any]) -> dict[str, Any]:
    """The response that is no stream."""
    choice = _chat_choice if kind.chat else _text_choice
    return {**kind.head(False), "choices": [choice(kind, i, deltas) for i, deltas in enumerate(answers)], "usage": used}


def _chat_choice(kind: Kind, index: int, deltas: list[Delta]) -> dict[str, Any]:
    text = "".join(delta.text for delta in deltas)
    calls = [call for delta in deltas for call in delta.calls]
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text, "refusal": None}
    if calls:
        message["tool_calls"] = [{"id": call.id, "type": "function", "function": _function(call)} for call in calls]
    tokens = [token for delta in deltas for token in delta.tokens]
    told = _chat_logprobs(kind, tokens) if kind.logprobs else None
    return {"index": index, "message": message, "logprobs": told, "finish_reason": deltas[-1].finish}


def _text_choice(kind: Kind, index: int, deltas: list[Delta]) -> dict[str, Any]:
    tokens = [token for delta in deltas for token in delta.tokens]
    told = _text_logprobs(kind, tokens) if kind.logprobs else None
    return {"index": index, "text": "".join(d.text for d in deltas), "logprobs": told, "finish_reason": deltas[-1].finish}


# Streams


def opening(kind: Kind, answers: int) -> list[dict[str, Any]]:
    """The chunks in front of all others: who speaks."""
    if not kind.chat:
        return []
    return [_chunk(kind, i, {"role": "assistant", "content": "", "refusal": None}) for i in range(answers)]


def chunks(kind: Kind, index: int, delta: Delta) -> Iterable[dict[str, Any]]:
    """The chunks that tell one delta."""
    if delta.empty:
        return
    if not kind.chat:
        told = _text_logprobs(kind, delta.tokens) if kind.logprobs else None
        choice = {"index": index, "text": delta.text, "logprobs": told, "finish_reason": delta.finish}
        yield {**kind.head(True), "choices": [choice]}
        return
    told = _chat_logprobs(kind, delta.tokens) if kind.logprobs and delta.tokens else None
    if delta.text or told:
        yield _chunk(kind, index, {"content": delta.text} if delta.text else {}, told)
    for place, call in enumerate(delta.calls):
        begun = {"index": place, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield _chunk(kind, index, {"tool_calls": [begun]})
        yield _chunk(kind, index, {"tool_calls": [{"index": place, "function": {"arguments": _function(call)["arguments"]}}]})
    if delta.finish:
        yield _chunk(kind, index, {}, finish=delta.finish)


def closing(kind: Kind, used: dict[str, Any]) -> dict[str, Any]:
    """The chunk behind all others, for whoever asked for the usage."""
    return {**kind.head(True), "choices": [], "usage": used}


def event(value: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()


def _chunk(kind: Kind, index: int, delta: dict[str, Any], told: Any = None, finish: str | None = None) -> dict[str, Any]:
    return {**kind.head(True), "choices": [{"index": index, "delta": delta, "logprobs": told, "finish_reason": finish}]}


# Parts


def _function(call: Call) -> dict[str, Any]:
    return {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}


def _chat_logprobs(kind: Kind, tokens: Sequence[Token]) -> dict[str, Any]:
    content = []
    for token in tokens:
        one = token.logprob
        top = [_named(kind, i, value) for i, value in one.top]
        content.append({**_named(kind, one.id, one.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _named(kind: Kind, token: int, logprob: float) -> dict[str, Any]:
    tokenizer = kind.tokenizer
    return {"token": tokenizer.labels([token])[0], "logprob": max(logprob, LEAST), "bytes": list(tokenizer.token_bytes(token))}


def _text_logprobs(kind: Kind, tokens: Sequence[Token]) -> dict[str, Any]:
    label = kind.tokenizer.labels
    return {
        "tokens": label([token.logprob.id for token in tokens]),
        "token_logprobs": [max(token.logprob.logprob, LEAST) for token in tokens],
        "top_logprobs": [{label([i])[0]: max(value, LEAST) for i, value in token.logprob.top} for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def best(answers: Sequence[Answer], count: int) -> list[int]:
    """The places of the likeliest answers, by mean log-probability of a token, likeliest first."""
    return sorted(range(len(answers)), key=lambda i: -answers[i].total_logprob / max(answers[i].ids, 1))[:count]
