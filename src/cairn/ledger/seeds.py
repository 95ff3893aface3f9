"""Randomness as a function: every draw is computed from (seed, stream, index). Holds no state; knows nothing of torch.

A generator with a state depends on how often it was asked before, hence on restarts; these functions do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def seed(root: int, stream: str, index: int = 0) -> int:
    """A 64-bit number out of the recipe's seed, a stream's name and an index. Distinct triples give independent numbers."""
    text = f"{root}\x00{stream}\x00{index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def uniform(root: int, stream: str, index: int = 0) -> float:
    """A float in [0, 1) with 53 random bits."""
    return (seed(root, stream, index) >> 11) / (1 << 53)


def below(n: int, root: int, stream: str, index: int = 0) -> int:
    """An integer in [0, n), `n` ≥ 1; its bias is below n / 2^64."""
    return (seed(root, stream, index) * n) >> 64


def pick(items: Sequence[T], root: int, stream: str, index: int = 0) -> T:
    """One of `items`."""
    return items[below(len(items), root, stream, index)]


def permute(position: int, n: int, root: int, stream: str, index: int = 0) -> int:
    """Where a keyed permutation of range(n) sends `position`, without ever holding the permutation.

    A four-round Feistel network over the next even power of two, walked until it lands below `n` (cycle walking,
    Black and Rogaway 2002). Four rounds mix well for any `n`; a tiny `n` costs a few extra walks.
    """
    if not 0 <= position < n:
        raise IndexError(f"position {position} is not in range({n})")
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = [seed(root, f"{stream}/round{r}", index) for r in range(4)]
    x = position
    while True:
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        x = (left << half) | right
        if x < n:
            return x


def _mix(x: int) -> int:
    """SplitMix64's finaliser: spreads every input bit over every output bit (Steele et al. 2014)."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
