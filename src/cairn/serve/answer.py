"""One answer's tokens to what its caller gets: text, calls and log-probabilities, piece by piece. Knows no HTTP and no JSON shape.

A streamed answer and a whole one are made of the same pieces, so they cannot differ. Text is held back for as long as it may
turn out to be no text: the beginning of a stop string, of a call, or of what the format puts in front of its stop token.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cairn.chat.format import JOINER, Format
from cairn.chat.parse import CALL_OPEN, answer_of_text
from cairn.generate.request import Completion, Logprob, Step
from cairn.generate.text import Detokenizer, StopStrings
from cairn.tokenizer.load import Tokenizer

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Call:
    """A function call.

    Attributes:
        id: names it, so that its result can.
        name: the function.
        arguments: a JSON object.
    """

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Token:
    """A generated token with its log-probability.

    Attributes:
        logprob: the token, its log-probability, and the likeliest ones.
        offset: where its text begins in the answer's text as the model wrote it.
    """

    logprob: Logprob
    offset: int


@dataclass
class Delta:
    """What became certain of an answer.

    Attributes:
        text: its next text.
        calls: its calls; they come all at once, when the answer has ended.
        tokens: the tokens that were read since the last delta, where log-probabilities were asked for.
        finish: why it ended, on its last delta.
    """

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell yet. Tokens alone wait for the text that they make."""
        return not (self.text or self.calls or self.finish)


class Answer:
    """Reads the steps of one answer.

    Args:
        tokenizer: the model's.
        format: the chat format, or None for plain text.
        stops: texts that end the answer.
        calls: whether calls are read out of it; else they are text.
        most_calls: further calls are left out.
        prefix: text that stands in front of the answer (completions that echo their prompt).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        format: Format | None = None,
        *,
        stops: Sequence[str] = (),
        calls: bool = False,
        most_calls: int | None = None,
        prefix: str = "",
    ) -> None:
        self._detokenizer, self._stops = Detokenizer(tokenizer), StopStrings(stops)
        self._content = _Plain() if format is None else _Content(format, calls, most_calls)
        self._prefix = prefix
        self._read = 0
        """Characters that the detokenizer gave."""
        self._kept = 0
        """Of these, how many stand in front of any stop string."""
        self._tokens: list[Token] = []
        self.ids = 0
        """Generated tokens so far, the stop token included."""
        self.completion: Completion | None = None
        """The engine's own, once it has ended."""
        self.total_logprob = 0.0
        """The sum over the tokens, where log-probabilities were asked for."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met: the engine need not go on."""
        return self._stops.stopped is not None

    def feed(self, step: Step) -> Delta:
        """What a step of the engine makes certain. After the delta with `finish` nothing more may be fed."""
        completion = step.completion
        ids = step.ids
        if completion is not None and completion.stop_id is not None and ids:
            ids = ids[:-1]
            self.ids += 1
        text = self._take_prefix()
        for place, token in enumerate(ids):
            if self.stopped:
                break
            self.ids += 1
            if step.logprobs:
                self._tokens.append(Token(step.logprobs[place], self._read))
                self.total_logprob += step.logprobs[place].logprob
            piece = self._detokenizer.feed(token)
            self._read += len(piece)
            text += self._content.feed(self._stopped_text(piece))
        if completion is None and not self.stopped:
            return self._delta(text)
        return self._finish(text, completion)

    def _finish(self, text: str, completion: Completion | None) -> Delta:
        self.completion = completion
        if not self.stopped:
            piece = self._detokenizer.finish()
            self._read += len(piece)
            text += self._content.feed(self._stopped_text(piece))
        rest = self._stops.finish()
        self._kept += len(rest)
        text += self._content.feed(rest)
        last, calls = self._content.finish()
        reason: Finish = "length" if completion is not None and completion.reason == "length" and not self.stopped else "stop"
        if calls:
            reason = "tool_calls"
        if self.stopped:
            # What the model wrote for the stop string itself is no part of the answer, nor are its log-probabilities.
            self._tokens = [token for token in self._tokens if token.offset < self._kept]
        delta = self._delta(text + last, final=True)
        delta.calls, delta.finish = calls, reason
        return delta

    def _stopped_text(self, piece: str) -> str:
        kept = self._stops.feed(piece)
        self._kept += len(kept)
        return kept

    def _take_prefix(self) -> str:
        prefix, self._prefix = self._prefix, ""
        return prefix

    def _delta(self, text: str, final: bool = False) -> Delta:
        """A delta with the tokens so far; where a stop string may be under way, its tokens wait with its text."""
        ready = len(self._tokens) if final else next((i for i, t in enumerate(self._tokens) if t.offset >= self._kept), len(self._tokens))
        if not text and not final:
            return Delta()
        tokens, self._tokens = self._tokens[:ready], self._tokens[ready:]
        return Delta(text, tokens=tokens)


class _Plain:
    """Text as it is."""

    def feed(self, text: str) -> str:
        return text

    def finish(self) -> tuple[str, list[Call]]:
        return "", []


class _Content(_Plain):
    """A chat answer's text: its content as it becomes certain, and at the end its calls."""

    def __init__(self, format: Format, calls: bool, most_calls: int | None) -> None:
        self._format, self._reads_calls, self._most_calls = format, calls, most_calls
        self._raw = ""
        self._passed = 0
        """How much of the raw text was passed on."""
        self._called = False
        """Whether a call began: what follows waits for the end."""
        self._told = 0
        """Characters of content that were passed on."""
        starts = (format.closing, CALL_OPEN, "\n" + CALL_OPEN) if calls else (format.closing,)
        self._starts = tuple(start for start in starts if start)

    def feed(self, text: str) -> str:
        self._raw += text
        if self._called:
            return ""
        at = self._raw.find(CALL_OPEN, self._passed) if self._reads_calls else -1
        if at < 0:
            return self._pass(len(self._raw) - self._held())
        self._called = True
        return self._pass(at - 1 if at > self._passed and self._raw[at - 1] == "\n" else at)

    def finish(self) -> tuple[str, list[Call]]:
        format = self._format
        calls: list[Call] = []
        if self._reads_calls:
            message = answer_of_text(format, self._raw)
            functions = [call["function"] for call in message.get("tool_calls", ())][: self._most_calls]
            calls = [Call(f"call_{secrets.token_hex(12)}", f["name"], f["arguments"]) for f in functions]
            content = message["content"]
        else:
            content = format.unescape(self._raw.removesuffix(format.closing) if format.closing else self._raw)
        return content[self._told :], calls

    def _pass(self, upto: int) -> str:
        if upto <= self._passed:
            return ""
        text = self._raw[self._passed : upto]
        if JOINER in text:
            # A joiner goes only where a marker stands in front of it, which may have been passed on before: look at all of it.
            whole = self._format.unescape
            text = whole(self._raw[:upto])[len(whole(self._raw[: self._passed])) :]
        self._passed = upto
        self._told += len(text)
        return text

    def _held(self) -> int:
        """The length of the longest end that may yet turn out to be no content."""
        raw, longest = self._raw[self._passed :], 0
        for start in self._starts:
            longest = max([longest, *(n for n in range(1, min(len(start), len(raw)) + 1) if raw.endswith(start[:n]))])
        return longest
