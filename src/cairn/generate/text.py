"""Ids to text while they come: no half characters, no beginning of a stop string. Knows a tokenizer's `decode` and no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cairn.errors import UserError

_HALF = "\ufffd"
"""What a decoder shows for bytes that are no whole character yet."""
_WAITING = 16
"""So many ids wait for a character to become whole at most."""
_CHARACTER = 3
"""Ids that an unfinished character can begin in: each brings a byte, and four are a whole one."""


class Decodes(Protocol):
    """What is asked of a tokenizer here."""

    def decode(self, ids: Sequence[int], /) -> str: ...


class Detokenizer:
    """Text out of one id after another; the pieces together are the decoding of all ids.

    Each time, the ids since the last whole character are decoded behind those of the piece before: a decoder that drops the
    space in front of a text's first word would otherwise drop it in front of every piece.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        """The text that became whole with this id, often none."""
        self._pending.append(token)
        text = self._text()
        if not text.endswith(_HALF):
            return self._took(text)
        return self._broken(text) if len(self._pending) >= _WAITING else ""

    def finish(self) -> str:
        """What is left: bytes that never became a character appear as U+FFFD."""
        return self._took(self._text()) if self._pending else ""

    def _broken(self, text: str) -> str:
        """What stands in front of the last ids of a run of bytes that are no characters.

        All of a long run, decoded anew with each id, would hold up whoever reads: its cost grows with its square.
        """
        last, self._pending = self._pending[-_CHARACTER:], self._pending[:-_CHARACTER]
        first = self._text()
        if text.startswith(first):
            self._took(first)
        else:
            first = ""
        self._pending += last
        return first

    def _text(self) -> str:
        return self._tokenizer.decode(self._before + self._pending)[len(self._tokenizer.decode(self._before)) :]

    def _took(self, text: str) -> str:
        # An empty text (a token that decodes to nothing) must not become the context that the next one is measured against.
        if text:
            self._before, self._pending = self._pending, []
        return text


class StopStrings:
    """Cuts text in front of the stop string that is complete first, however the text is cut into pieces.

    Args:
        stops: texts that end an answer; of two that are complete at the same character the longer one counts.

    Raises:
        UserError: an empty stop string, which would end every answer before its first character.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise UserError("a stop string is empty", remedy="give at least one character, or no stop string")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped: str | None = None
        """The stop string that was met."""

    def feed(self, text: str) -> str:
        """The text that certainly stands before any stop string. Nothing comes after one was met."""
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.stopped = min(found)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back because it could have begun a stop string."""
        held, self._held = self._held, ""
        return held


class TextStop:
    """A stop function for one request: true once its text holds a stop string. Looks at each new id once.

    `text` is the text so far, cut in front of the stop string, in whole characters. Where the ids begin with text that belongs
    to the prompt (`before`), that is no part of it.
    """

    def __init__(self, tokenizer: Decodes, stops: Sequence[str], before: str = "") -> None:
        self._text, self._stops = Detokenizer(tokenizer), StopStrings(stops)
        self._skip = len(before)
        self._read = 0
        self._parts: list[str] = []

    def __call__(self, ids: list[int]) -> bool:
        for token in ids[self._read :]:
            text = self._text.feed(token)
            self._parts.append(self._stops.feed(text[self._skip :]))
            self._skip = max(0, self._skip - len(text))
        self._read = len(ids)
        return self.stopped is not None

    @property
    def stopped(self) -> str | None:
        """The stop string that was met."""
        return self._stops.stopped

    @property
    def text(self) -> str:
        """The text in front of the stop string."""
        return "".join(self._parts)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` without being all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
