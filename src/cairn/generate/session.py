"""Dialogues answered piece by piece: messages → the training's own rendering → engine → text → message. Knows no terminal.

A session holds no conversation: whoever calls keeps the messages and gives all of them each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cairn.chat.format import Format
from cairn.chat.parse import parse_answer
from cairn.chat.render import Renderer
from cairn.generate.engine import Completion, Engine, Reason, Request
from cairn.generate.sampling import Sampling
from cairn.generate.text import Detokenizer, StopStrings
from cairn.tokenizer.load import Tokenizer

Message = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, in whole characters, as the model writes it."""

    text: str


@dataclass(frozen=True)
class Final:
    """What an answer came to.

    Attributes:
        message: the answer as a message, tool calls read out of its text.
        text: the answer as the model wrote it: all pieces together.
        ids: the generated ids, the stop token included.
        reason: why it ended: "stop", "length" or "cancelled".
        stop_string: the stop string that ended it, if one did.
        prompt_tokens: length of the rendered prompt.
        seconds: wall time from the first step to the end.
        first_seconds: wall time until the first token.
    """

    message: Message
    text: str
    ids: list[int]
    reason: Reason
    stop_string: str | None
    prompt_tokens: int
    seconds: float
    first_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over the whole time, the prompt's included."""
        return len(self.ids) / self.seconds if self.seconds > 0 else 0.0


class Session:
    """Answers dialogues with one model.

    Args:
        engine: the model.
        tokenizer: its tokenizer.
        format: its chat format.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, format: Format) -> None:
        self.engine, self.tokenizer, self.format = engine, tokenizer, format
        self.renderer = Renderer(format, tokenizer)

    def request(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        attributes: Mapping[str, Any] | None = None,
        sampling: Sampling | None = None,
        index: int = 0,
    ) -> Request:
        """The engine's request that asks for the next assistant message.

        Raises:
            UserError: messages, tools or attributes that the format cannot render.
        """
        rendered = self.renderer.render(
            list(messages),
            tools=list(tools) if tools else None,
            attributes=dict(attributes) if attributes else None,
            add_generation_prompt=True,
        )
        return Request(rendered.ids, sampling or Sampling(), frozenset(self.renderer.stop_ids), index=index)

    def reply(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        attributes: Mapping[str, Any] | None = None,
        sampling: Sampling | None = None,
        stop_strings: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
        index: int = 0,
    ) -> Iterator[Piece | Final]:
        """Answer a dialogue: its text in pieces, and at last a `Final`.

        Args:
            messages: the dialogue so far; it ends with the turn to be answered.
            tools: what the model may call.
            attributes: for formats that steer by attributes.
            sampling: how tokens are chosen; greedy unless given.
            stop_strings: texts that end the answer; they are not part of it.
            cancelled: asked before every token; once true the answer ends with reason "cancelled".
            index: names the stream of draws: another index gives another sample.

        Raises:
            UserError: a dialogue that cannot be rendered, or one longer than the model's context.
        """
        request = self.request(messages, tools=tools, attributes=attributes, sampling=sampling, index=index)
        detokenizer, stops = Detokenizer(self.tokenizer), StopStrings(stop_strings)
        written: list[str] = []
        ids: list[int] = []
        begun = time.perf_counter()
        first = 0.0
        stream = self.engine.stream(request, cancelled)
        reason: Reason = "stop"
        while stops.stopped is None:
            try:
                token = next(stream)
            except StopIteration as end:
                completion: Completion = end.value
                reason = completion.reason
                break
            first = first or time.perf_counter() - begun
            ids.append(token)
            if token not in request.stop_ids:
                text = stops.feed(detokenizer.feed(token))
                if text:
                    written.append(text)
                    yield Piece(text)
        stream.close()
        rest = stops.feed(detokenizer.finish()) + stops.finish()
        if rest:
            written.append(rest)
            yield Piece(rest)
        text = "".join(written)
        yield Final(
            message=self.message(ids, None if stops.stopped is None else text),
            text=text,
            ids=ids,
            reason="stop" if stops.stopped is not None else reason,
            stop_string=stops.stopped,
            prompt_tokens=len(request.ids),
            seconds=time.perf_counter() - begun,
            first_seconds=first,
        )

    def message(self, ids: Sequence[int], cut: str | None = None) -> Message:
        """The message of an answer.

        Args:
            ids: its ids, the stop token included or not.
            cut: its text in front of a stop string, if one ended it: the ids then hold too much, so the text is read again.
        """
        return dict(parse_answer(self.format, self.tokenizer, list(ids) if cut is None else self.tokenizer.encode(cut)))
