"""Dialogues answered piece by piece: messages → the training's own rendering → engine → text → message. Knows no terminal.

A session holds no conversation: whoever calls keeps the messages and gives all of them each time. `converse` goes on by
itself: it runs the functions that the model calls, gives it their results, and ends with its answer or with a reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from cairn.chat.calls import CallLayout, call_layout
from cairn.chat.format import Format
from cairn.chat.parse import parse_answer
from cairn.chat.render import Renderer
from cairn.errors import UserError
from cairn.generate import grammar as grammars
from cairn.generate.constrain import Compiled, Constrainer
from cairn.generate.engine import Completion, Engine, Reason, Request
from cairn.generate.grammar import Grammar
from cairn.generate.sampling import Sampling
from cairn.generate.text import Detokenizer, StopStrings
from cairn.generate.tools import Called, Tools
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


@dataclass(frozen=True)
class Outcome:
    """How a conversation with tools ended.

    Attributes:
        messages: the messages that were added to the dialogue: answers, calls and results.
        reason: "answer" (an answer without a call), "length" or "cancelled" (an answer broke off), "rounds" or "time" (a limit
            was reached: the last calls were not run, or their results not answered).
        rounds: answers whose calls were run.
        seconds: wall time of all.
    """

    messages: list[Message]
    reason: Literal["answer", "length", "cancelled", "rounds", "time"]
    rounds: int
    seconds: float


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

    @cached_property
    def constrainer(self) -> Constrainer:
        """Compiles constraints for this model's answers."""
        return Constrainer(self.tokenizer, self.renderer.stop_ids)

    @cached_property
    def layout(self) -> CallLayout:
        """How the format writes function calls.

        Raises:
            UserError: it writes none that can be read back.
        """
        return call_layout(self.format)

    def request(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        parallel_calls: bool = True,
        constraint: Grammar | None = None,
        attributes: Mapping[str, Any] | None = None,
        sampling: Sampling | None = None,
        index: int = 0,
        most: int | None = None,
    ) -> Request:
        """The engine's request that asks for the next assistant message.

        Args:
            messages: the dialogue so far; it ends with the turn to be answered.
            tools: what the model may call.
            tool_choice: holds the answer to what can be parsed: "auto" (text, or valid calls of the tools), "none" (no call, and the
                tools are not shown), "required" (at least one call), or the name of the tool to call. None leaves it to the model.
            parallel_calls: whether a held answer may hold several calls.
            constraint: what the answer must look like instead.
            attributes: for formats that steer by attributes.
            sampling: how tokens are chosen; greedy unless given.
            index: names the stream of draws.
            most: tokens that the prompt may have; more are refused before they are encoded where that can be told. The model's context
                unless given.

        Raises:
            UserError: messages, tools or attributes that the format cannot render; a constraint that cannot be used, or that the
                budget of tokens has no room for.
        """
        compiled = self._compiled(tools, tool_choice, parallel_calls, constraint)
        rendered = self.renderer.render(
            list(messages),
            # A model that sees tools it may not call begins to speak of them, and is cut off where the call would stand.
            tools=list(tools) if tools and tool_choice != "none" else None,
            attributes=dict(attributes) if attributes else None,
            add_generation_prompt=True,
            most=self.engine.context if most is None else most,
        )
        request = Request(rendered.ids, sampling or Sampling(), frozenset(self.renderer.stop_ids), index=index, constraint=compiled)
        limit = self.engine.limit(request)
        if compiled is not None and limit > 0:  # a prompt beyond the context is the engine's to refuse
            compiled.check(limit)
        return request

    def _compiled(
        self, tools: Sequence[Mapping[str, Any]] | None, tool_choice: str | None, parallel: bool, constraint: Grammar | None
    ) -> Compiled | None:
        if constraint is not None:
            if tool_choice not in (None, "none"):
                remedy = "leave the constraint out where tools may be called, or set tool_choice to none"
                raise UserError("an answer cannot be held to a constraint and to function calls", where="tool_choice", remedy=remedy)
            return self.constrainer.compile(constraint)
        if tool_choice is None or (tool_choice in ("auto", "none") and not tools):
            return None
        return self.constrainer.compile(grammars.calls(self.layout, tools or [], tool_choice, parallel))

    def reply(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        parallel_calls: bool = True,
        constraint: Grammar | None = None,
        attributes: Mapping[str, Any] | None = None,
        sampling: Sampling | None = None,
        stop_strings: Sequence[str] = (),
        cancelled: Callable[[], bool] | None = None,
        index: int = 0,
    ) -> Iterator[Piece | Final]:
        """Answer a dialogue: its text in pieces, and at last a `Final`.

        Args:
            messages: the dialogue so far; it ends with the turn to be answered.
            tools, tool_choice, parallel_calls, constraint: see `request`.
            attributes: for formats that steer by attributes.
            sampling: how tokens are chosen; greedy unless given.
            stop_strings: texts that end the answer; they are not part of it.
            cancelled: asked before every token; once true the answer ends with reason "cancelled".
            index: names the stream of draws: another index gives another sample.

        Raises:
            UserError: a dialogue that cannot be rendered, or one longer than the model's context; see `request`.
        """
        request = self.request(
            messages,
            tools=tools,
            tool_choice=tool_choice,
            parallel_calls=parallel_calls,
            constraint=constraint,
            attributes=attributes,
            sampling=sampling,
            index=index,
        )
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

    def converse(
        self,
        messages: Sequence[Message],
        tools: Tools,
        *,
        tool_choice: str | None = "auto",
        rounds: int = 8,
        seconds: float = 120.0,
        tool_seconds: float = 30.0,
        cancelled: Callable[[], bool] | None = None,
        **options: Any,
    ) -> Iterator[Piece | Final | Called | Outcome]:
        """Answer a dialogue, running the functions that the model calls: pieces and a `Final` an answer, a `Called` a call, an `Outcome`.

        Args:
            messages: the dialogue so far.
            tools: the functions.
            tool_choice: see `request`; "required" and a name hold for the first answer, "auto" for the rest.
            rounds: answers whose calls are run at most.
            seconds: wall time after which nothing more is begun: an answer that is being written breaks off.
            tool_seconds: wall time of one call.
            cancelled: asked before every token; once true the answer breaks off.
            options: of `reply`.

        Raises:
            UserError: see `reply`; no rounds or no time.
        """
        if rounds < 1 or seconds <= 0 or tool_seconds <= 0:
            raise UserError("a conversation with tools needs rounds and time", where="converse", remedy="give numbers above 0")
        begun = time.perf_counter()

        def left() -> float:
            return seconds - (time.perf_counter() - begun)

        def stopped() -> bool:
            return left() <= 0 or (cancelled is not None and cancelled())

        added: list[Message] = []

        def outcome(reason: Literal["answer", "length", "cancelled", "rounds", "time"], count: int) -> Outcome:
            return Outcome(added, reason, count, time.perf_counter() - begun)

        for count in range(rounds + 1):
            choice = tool_choice if count == 0 or tool_choice in (None, "none") else "auto"
            final = None
            for event in self.reply([*messages, *added], tools=tools.schemas, tool_choice=choice, cancelled=stopped, **options):
                final = event if isinstance(event, Final) else final
                yield event
            assert final is not None
            added.append(final.message)
            calls = final.message.get("tool_calls") or []
            if final.reason == "cancelled":
                yield outcome("time" if left() <= 0 else "cancelled", count)
                return
            if not calls:
                yield outcome("length" if final.reason == "length" else "answer", count)
                return
            if count == rounds:
                break
            for call in calls:
                function = call["function"]
                called = tools.run(function["name"], function["arguments"], max(min(tool_seconds, left()), 0.001))
                added.append({"role": "tool", "content": called.content})
                yield called
            if left() <= 0:
                yield outcome("time", count + 1)
                return
        yield outcome("rounds", rounds)

    def message(self, ids: Sequence[int], cut: str | None = None) -> Message:
        """The message of an answer.

        Args:
            ids: its ids, the stop token included or not.
            cut: its text in front of a stop string, if one ended it: the ids then hold too much, so the text is read again.
        """
        return dict(parse_answer(self.format, self.tokenizer, list(ids) if cut is None else self.tokenizer.encode(cut)))
