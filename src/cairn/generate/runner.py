"""What runs a model for the engine: slots that hold sequences, tokens appended to them, logits. Knows no request and no sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Tokens to append to a slot.

    Attributes:
        slot: which one.
        ids: at least one token.
        start: how many tokens the slot holds before; what it held beyond is dropped.
        wanted: for how many of the last positions of `ids` logits are wanted, 0 to len(ids).
    """

    slot: int
    ids: list[int]
    start: int
    wanted: int


class Runner(Protocol):
    """A model with a cache of `slots` sequences."""

    slots: int
    """Numbers 0 to slots - 1 name sequences."""
    capacity: int
    """Tokens that one slot can hold."""

    def cost(self, tokens: int) -> int:
        """Tokens' worth of memory that a slot takes which comes to hold `tokens`, padding counted; never below `tokens`."""
        ...

    def forward(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Append the pieces, of distinct slots, and give the logits_TV of each piece's wanted positions, as the model computed them.

        The tensors may be overwritten by the next call.
        """
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make a slot hold the first `length` tokens of another one; what it held before is dropped."""
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Drop what a slot holds beyond `length` tokens; 0 frees its memory."""
        ...
