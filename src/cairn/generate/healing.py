"""Token healing: a prompt that ends inside of what would be one token is shortened, and the answer begins with what was taken off.

A prompt that ends in "http:" makes a model avoid "//": in training "://" was one token, so ":" was never followed by it. The
last tokens of the prompt are taken back as long as a longer token begins with their text, and the first ids of the answer
must write that text again; they may be the same ids or longer ones. Knows vocabularies; no model and no chat format, where
prompts end at borders that the model was trained on.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cairn.generate.matcher import Matcher
from cairn.generate.vocabulary import END, Vocabulary


@dataclass(frozen=True)
class Healed:
    """A prompt whose border is open.

    Attributes:
        ids: the prompt that is left.
        taken: the ids that were taken off.
        text: their text; the answer begins with it.
    """

    ids: list[int]
    taken: list[int]
    text: str


def heal(vocabulary: Vocabulary, ids: Sequence[int]) -> Healed:
    """Open a prompt's border; nothing is taken where no longer token begins with its end. At least one id stays."""
    ids = list(ids)
    best = len(ids)
    end = b""
    for at in range(len(ids) - 1, 0, -1):
        symbols = vocabulary.symbols(ids[at])
        if not symbols or max(symbols) >= END:
            break
        end = bytes(symbols) + end
        if not _is_beginning(vocabulary, end):
            break
        # Half a character cannot stand alone: what was taken must be text.
        if _text(end) is not None:
            best = at
    taken = ids[best:]
    text = b"".join(bytes(vocabulary.symbols(id)) for id in taken).decode()
    return Healed(ids[:best], taken, text)


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _range(vocabulary: Vocabulary, beginning: bytes) -> tuple[int, int]:
    """Where in the sorted vocabulary the tokens stand that begin so."""
    words = vocabulary.sorted_bytes
    low = bisect_left(words, (beginning, -1))
    above = beginning.rstrip(b"\xff")
    if not above:
        return low, len(words)
    return low, bisect_left(words, (above[:-1] + bytes([above[-1] + 1]), -1))


def _is_beginning(vocabulary: Vocabulary, data: bytes) -> bool:
    """Whether a longer token begins with it."""
    low, high = _range(vocabulary, data)
    words = vocabulary.sorted_bytes
    return any(words[at][0] != data for at in range(low, min(high, low + 1 + _SAME)))


_SAME = 8
"""So many ids of the same bytes are passed over at most."""


class HealingMatcher(Matcher):
    """Lets an answer begin with a given text, and go on freely; see `cairn.generate.matcher.Matcher`."""

    def __init__(self, vocabulary: Vocabulary, text: str) -> None:
        self.finished = False
        self._vocabulary, self._rest = vocabulary, text.encode()
        self._plan = vocabulary.write(self._rest)

    def allowed(self, left: int) -> Tensor | None:
        """bool_V; None once the text is written."""
        rest = self._rest
        if not rest:
            return None
        words = self._vocabulary.sorted_bytes
        low, high = _range(self._vocabulary, rest)
        ids = [id for _, id in words[low:high]]
        fits = self._plan is not None and self._plan[-len(rest) - 1][0] <= left
        for end in range(1, len(rest)):
            # Written byte by byte, the text could take all the tokens that there are.
            if fits and self._plan is not None and self._plan[end - len(rest) - 1][0] > left - 1:
                continue
            at = bisect_left(words, (rest[:end], -1))
            while at < len(words) and words[at][0] == rest[:end]:
                ids.append(words[at][1])
                at += 1
        mask_V = torch.zeros(self._vocabulary.size, dtype=torch.bool)
        mask_V[ids] = True
        return mask_V

    def accept(self, id: int, left: int) -> bool:
        """Take an id, or refuse it; see `Matcher`."""
        if self._rest:
            allowed_V = self.allowed(left)
            if allowed_V is not None and (id >= len(allowed_V) or not allowed_V[id]):
                return False
            self._rest = self._rest[len(self._vocabulary.symbols(id)) :]
        return True

    def fork(self) -> HealingMatcher:
        """See `Matcher`."""
        return copy.copy(self)
