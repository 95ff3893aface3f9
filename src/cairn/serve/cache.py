"""Answers that were given before, for requests that come again. Knows bodies, deltas and vectors; runs no model.

What a request asks is its whole body but for how it is told (streamed or not) and OpenAI's bookkeeping: messages, tools, attributes,
sampling, seed, constraint. Equal bodies get the same answer. A drawn answer is kept only where its caller asks for that, for a
caller without a seed wants another one each time.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from cairn.serve.answer import Delta
from cairn.serve.protocol import ChatBody, CompletionBody

_TOLD = (
    "stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "cache",
    "max_tokens", "max_completion_tokens", "stop",
)  # fmt: skip
"""Fields that no answer depends on, and those that stand in a key under one name each."""
_DRAWS = ("seed", "top_p", "top_k", "min_p")
"""Fields that mean nothing where nothing is drawn."""
EVENT_BYTES = 600
"""About what one delta takes beside its text."""
TOKEN_BYTES = 400
"""About what a token's log-probability takes, and each of its alternatives a quarter of it."""


@dataclass(frozen=True)
class Question:
    """What a request asks.

    Attributes:
        key: of all that its answer depends on.
        context: the same without the text of its last message, where that text may be another one; None: it must be the same.
        text: that text.
    """

    key: str
    context: str | None = None
    text: str = ""


@dataclass
class Held:
    """An answer that was given, or several.

    Attributes:
        events: (place of the answer, delta), in the order in which they came.
        answers: how many.
        prompt_tokens, generated: as they were counted.
        ids: every generated id of the first answer, the stop token included.
    """

    events: list[tuple[int, Delta]]
    answers: int
    prompt_tokens: int
    generated: int
    ids: list[int]
    near: tuple[str, Tensor] | None = field(default=None, repr=False)
    """(context, vector of the text), where it may answer a text that is nearly the same."""

    @property
    def bytes(self) -> int:
        """About what it takes."""
        size = 1000 + 8 * len(self.ids) + (0 if self.near is None else 4 * self.near[1].numel())
        for _, delta in self.events:
            size += EVENT_BYTES + 4 * len(delta.text) + sum(TOKEN_BYTES + 100 * len(token.logprob.top) for token in delta.tokens)
            size += sum(len(str(call.arguments)) + 500 for call in delta.calls)
        return size


def question(body: ChatBody | CompletionBody) -> Question | None:
    """What a body asks; None where its answer is not to be kept."""
    drawn = body.temperature > 0
    chooses = isinstance(body, CompletionBody) and body.best_of not in (None, body.n)
    if body.cache is False or (drawn and not body.cache) or chooses:
        return None
    value = body.model_dump(mode="json", exclude=set(_TOLD) | (set() if drawn else set(_DRAWS)))
    # In the caller's order: that of a schema's keys is what the model gets to see.
    value |= {"kind": type(body).__name__, "limit": body.limit, "stops": body.stops}
    key = _digest(value)
    text = _asked_text(body) if isinstance(body, ChatBody) and not drawn else None
    if text is None:
        return Question(key)
    messages = [*value["messages"][:-1], {**value["messages"][-1], "content": None}]
    return Question(key, _digest({**value, "messages": messages}), text)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _asked_text(body: ChatBody) -> str | None:
    """The text of a plain question: its answer can be checked token by token, for nothing but the model's logits chose it."""
    last = body.messages[-1] if body.messages else {}
    changed = body.logit_bias or body.presence_penalty or body.frequency_penalty or body.repetition_penalty != 1.0
    if changed or body.tools or body.constrained or body.logprobs or body.n != 1 or last.get("role") != "user":
        return None
    content = last.get("content")
    return content if isinstance(content, str) else None


class AnswerCache:
    """Answers by their questions, those used last kept longest. Safe to call from several threads.

    Args:
        most: answers that are kept.
        most_bytes: what they take together, about.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._contexts: dict[str, dict[str, Tensor]] = {}
        """Context: {key: vector}."""
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: str) -> Held | None:
        """The answer to a question that was asked before."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
            return found

    def put(self, key: str, held: Held) -> None:
        """Keep an answer; others go where there is no room. One that alone is too large is not kept."""
        size = held.bytes
        with self._lock:
            self._drop(key)
            if size > self._most_bytes:
                return
            self._held[key] = held
            self._bytes += size
            if held.near is not None:
                self._contexts.setdefault(held.near[0], {})[key] = held.near[1]
            while len(self._held) > self._most or self._bytes > self._most_bytes:
                self._drop(next(iter(self._held)))

    def nearest(self, context: str, vector: Tensor, least: float, count: int) -> list[tuple[float, Held]]:
        """(likeness, answer) of the questions in a context whose text is most alike, the likest first.

        Args:
            context: a `Question`'s.
            vector: the text's, of length 1.
            least: those that are less alike are left out.
            count: at most so many.
        """
        with self._lock:
            there = self._contexts.get(context)
            if not there:
                return []
            keys = list(there)
            alike_K = torch.stack(list(there.values())) @ vector
            values, places = alike_K.topk(min(count, len(keys)))
            chosen = [(float(v), keys[p]) for v, p in zip(values.tolist(), places.tolist(), strict=True) if v >= least]
            return [(alike, self._held[key]) for alike, key in chosen]

    def stats(self) -> dict[str, int]:
        """How many answers are kept, and about what they take."""
        with self._lock:
            return {"entries": len(self._held), "bytes": self._bytes}

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is None:
            return
        self._bytes -= held.bytes
        if held.near is not None:
            there = self._contexts[held.near[0]]
            del there[key]
            if not there:
                del self._contexts[held.near[0]]


class Replay:
    """A kept answer as if it came anew: what `Running` is to one that is computed.

    Args:
        held: the answer.
        told: what its response says about where it came from.
        prompt_tokens: of this request, whose text may be another than the one that was answered.
    """

    def __init__(self, held: Held, told: dict[str, Any], prompt_tokens: int | None = None) -> None:
        self._held, self.told = held, told
        self.count = held.answers
        self.prompt_tokens = held.prompt_tokens if prompt_tokens is None else prompt_tokens
        self.cached = self.prompt_tokens
        self.generated = held.generated

    def kept(self) -> list[int]:
        """The places of the answers that are given."""
        return list(range(self.count))

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """See `Running.deltas`; all are there already."""
        for event in self._held.events:
            yield event
