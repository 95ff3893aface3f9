"""What readers of JSON want beyond its grammar: numbers of bounded length, bounded nesting, no key twice in one object.

`1e999` is JSON, and infinity to Python; a number of 5,000 digits and 2,000 open brackets are JSON, and errors. A model that
repeats itself writes such things, so tokens that would are refused while the answer can still go another way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

MAX_DIGITS = 64
"""Longest number in front of its exponent, sign and point included."""
MAX_EXPONENT = 2
"""Most digits of an exponent: with `MAX_DIGITS` every number is finite."""
MAX_DEPTH = 64
"""Most values inside of one another."""
_NUMBER, _EXPONENT, _SIGN = frozenset(b"0123456789.-"), frozenset(b"eE"), frozenset(b"+-")
_QUOTE, _ESCAPE = b'"\\'
_OPEN, _CLOSE, _SPACE = frozenset(b"{["), frozenset(b"}]"), frozenset(b" \n\t\r")
_OBJECT, _COMMA = b"{,"


class JsonShape(NamedTuple):
    """Where in JSON a text stands."""

    waiting: bytes = b""
    """What must come before the JSON begins; empty once it is there."""
    recent: bytes = b""
    keys: tuple[frozenset[str] | None, ...] = ()
    """For each value that is open the keys that it has, outermost first; None for a list."""
    expects_key: bool = False
    quoted: bool = False
    escaped: bool = False
    key: bytes | None = None
    """The key that is being written."""
    digits: int = 0
    exponent: int = -1
    """Digits of the exponent; -1 in front of one."""

    def after(self, symbols: Sequence[int]) -> JsonShape | None:
        """This place some symbols later, or None where a bound is passed or a key stands twice."""
        if self.quoted and self.key is None and not self.escaped and _QUOTE not in symbols and _ESCAPE not in symbols:
            return self
        state: JsonShape | None = self
        for symbol in symbols:
            assert state is not None
            state = state._next(symbol)
            if state is None:
                return None
        return state

    def _next(self, symbol: int) -> JsonShape | None:
        if self.waiting:
            recent = (self.recent + bytes([symbol]))[-len(self.waiting) :] if symbol < 256 else b""
            return JsonShape() if recent == self.waiting else self._replace(recent=recent)
        if self.quoted:
            return self._in_text(symbol)
        if self.digits and symbol in _EXPONENT:
            return self._replace(exponent=0)
        if self.exponent >= 0:
            if symbol in _SIGN:
                return self
            if symbol in _NUMBER:
                return self._replace(exponent=self.exponent + 1) if self.exponent < MAX_EXPONENT else None
        elif symbol in _NUMBER:
            return self._replace(digits=self.digits + 1) if self.digits < MAX_DIGITS else None
        keys = self.keys
        if symbol == _QUOTE:
            return JsonShape(keys=keys, quoted=True, key=b"" if self.expects_key else None)
        if symbol in _OPEN:
            keys = (*keys, frozenset() if symbol == _OBJECT else None)
            return None if len(keys) > MAX_DEPTH else JsonShape(keys=keys, expects_key=symbol == _OBJECT)
        if symbol in _CLOSE:
            return JsonShape(keys=keys[:-1])
        if symbol == _COMMA:
            return JsonShape(keys=keys, expects_key=bool(keys) and keys[-1] is not None)
        return JsonShape(keys=keys, expects_key=self.expects_key and symbol in _SPACE)

    def _in_text(self, symbol: int) -> JsonShape | None:
        if symbol == _QUOTE and not self.escaped:
            if self.key is None:
                return JsonShape(keys=self.keys)
            # Raw line breaks and the like never pass the grammar; strictness here would only fail on what it let through.
            key = json.loads(b'"' + self.key + b'"', strict=False)
            here = self.keys[-1] or frozenset()
            return None if key in here else JsonShape(keys=(*self.keys[:-1], here | {key}))
        key_bytes = None if self.key is None else self.key + (bytes([symbol]) if symbol < 256 else b"")
        return self._replace(escaped=symbol == _ESCAPE and not self.escaped, key=key_bytes)
