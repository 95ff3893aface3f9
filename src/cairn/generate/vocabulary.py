"""A tokenizer as constraints need it: for llguidance, as bytes of every id, and as the fewest tokens that write given bytes.

What an answer is made of are symbols here: 0 to 255 are bytes, `END` ends the answer, and each special token is one beyond.
Knows llguidance and a tokenizer's JSON; no torch and no model, so that the process that tries grammars out starts fast.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

END = 256
"""The symbol of every stop token."""
Symbols = tuple[int, ...]
NEVER = 1 << 40
"""The count of tokens that write what cannot be written."""
_LONGEST = 16
"""Tokens of more bytes are not looked at when an answer is closed: it may take a token more, and is found in a fraction of the time."""


class _Bytes:
    """256 bytes, the end, and special tokens by name, in the shape in which llguidance asks for a tokenizer."""

    bos_token_id = None
    eos_token_id = END

    def __init__(self, special: Sequence[str]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + [b"<|end|>"] + [name.encode() for name in special]
        self.special_token_ids = list(range(END, len(self.tokens)))

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


class Vocabulary:
    """The ids of one tokenizer.

    Args:
        tokenizer: what `tokenizer.json` holds.
        size: the number of ids.
        special: special tokens by name; text never turns into them.
        stop_ids: ids that end an answer.
    """

    def __init__(self, tokenizer: str, size: int, special: Mapping[str, int], stop_ids: Collection[int]) -> None:
        self.json, self.size, self.special, self.stop_ids = tokenizer, size, dict(special), frozenset(stop_ids)
        # llguidance wants a stop token. Where there is none, an id that is hardly text plays it and is never allowed.
        self.unused = None if stop_ids else min(self.special.values(), default=size - 1)
        ends = sorted(stop_ids) if self.unused is None else [self.unused]
        self.tokens = LLTokenizer(tokenizer, n_vocab=size, eos_token=ends)
        names = [name for name, i in self.special.items() if i not in self.stop_ids]
        self.bytes: Any = LLTokenizer(TokenizerWrapper(_Bytes(names)), slices=[])
        self._names = {self.special[name]: END + 1 + at for at, name in enumerate(names)}
        self._symbols: dict[int, Symbols] = {}

    def symbols(self, id: int) -> Symbols:
        """What an id stands for."""
        found = self._symbols.get(id)
        if found is None:
            if id in self.stop_ids:
                found = (END,)
            elif id in self._names:
                found = (self._names[id],)
            elif id >= self.size or id == self.unused or self.tokens.is_special_token(id):
                found = ()  # an id without a text: nothing that a grammar can mean
            else:
                found = tuple(self.tokens.decode_bytes([id]))
            self._symbols[id] = found
        return found

    @cached_property
    def _ids(self) -> dict[Symbols, int]:
        """The lowest id of every run of symbols."""
        out: dict[Symbols, int] = {}
        for id in range(self.size):
            symbols = self.symbols(id)
            if symbols and symbols != (END,):
                out.setdefault(symbols, id)
        return out

    @cached_property
    def sorted_bytes(self) -> list[tuple[bytes, int]]:
        """(bytes, id) of every id that is neither special nor empty, in order."""
        return sorted((bytes(symbols), id) for id in range(self.size) if (symbols := self.symbols(id)) and max(symbols) < END)

    def write(self, symbols: Sequence[int], known: Symbols = (), plan: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]] | None:
        """How to write symbols in the fewest tokens, from each place on: (tokens from here to the end, the next id).

        None where some symbol stands in no token. A place that no token's border can reach has an endless count.

        Args:
            symbols: what is to be written.
            known, plan: other symbols and what this gave for them: their common end is not looked at again.
        """
        run = tuple(symbols)
        same = _common_end(run, known)
        best: list[tuple[int, int]] = [(0, -1)] * (len(run) + 1)
        if same:
            best[-same - 1 :] = plan[-same - 1 :]
        for at in range(len(run) - same - 1, -1, -1):
            found = (NEVER, -1)
            for end in range(at + 1, min(at + _LONGEST, len(run)) + 1):
                id = self._ids.get(run[at:end])
                if id is not None and best[end][0] + 1 < found[0]:
                    found = (best[end][0] + 1, id)
            best[at] = found
        return best if best[0][0] < NEVER else None


def _common_end(a: Symbols, b: Symbols) -> int:
    """How many symbols two runs share at their ends."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices compare fast: halve the place where they first differ
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[len(a) - middle :] == b[len(b) - middle :] else (low, middle - 1)
    return low
