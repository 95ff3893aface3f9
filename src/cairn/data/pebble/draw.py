"""Draws and splits of the built-in corpus: every choice is a function of (seed, stream, index). Knows no skill.

Which questions are held out does not depend on the recipe's seed: models that were trained with different seeds can be
compared on the same test, and no seed lets a test question into another's training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cairn.ledger import seeds

T = TypeVar("T")

_HELD_OUT = "pebble/held-out/"


class Dice:
    """The draws of one row. Each draw has a name, so that adding one moves none of the others."""

    def __init__(self, seed: int, stream: str, index: int) -> None:
        self.seed, self.stream, self.index = seed, stream, index

    def below(self, name: str, n: int) -> int:
        """An integer in [0, n)."""
        return seeds.below(n, self.seed, f"pebble/{self.stream}/{name}", self.index)

    def between(self, name: str, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + self.below(name, high - low + 1)

    def chance(self, name: str, share: float) -> bool:
        """True for `share` of the rows."""
        return seeds.uniform(self.seed, f"pebble/{self.stream}/{name}", self.index) < share

    def pick(self, name: str, items: Sequence[T]) -> T:
        """One of `items`."""
        return items[self.below(name, len(items))]

    def some(self, name: str, items: Sequence[T], n: int) -> list[T]:
        """`n` different ones of `items`, in drawn order."""
        left = list(items)
        return [left.pop(self.below(f"{name}/{k}", len(left))) for k in range(n)]

    def shuffled(self, name: str, items: Sequence[T]) -> list[T]:
        """All of `items` in drawn order."""
        return self.some(name, items, len(items))


def held_out(key: str, share: float) -> bool:
    """Whether the question that `key` names belongs to the test: `share` of all keys, whatever the recipe's seed."""
    return seeds.uniform(0, _HELD_OUT + key) < share


def held_templates(key: str, templates: int, held: int) -> frozenset[int]:
    """Which `held` of an item's `templates` are kept for the test. Every item keeps the others for training."""
    return frozenset(seeds.permute(k, templates, 0, _HELD_OUT + key) for k in range(held))


def order(items: Sequence[T], seed: int, stream: str) -> list[T]:
    """All of `items` in an order drawn once."""
    n = len(items)
    return [items[seeds.permute(k, n, seed, f"pebble/{stream}/order")] for k in range(n)]
