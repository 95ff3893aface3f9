"""Puts documents of different lengths together into sequences of one capacity. Knows lengths only.

Best fit within a window: the oldest waiting document opens a sequence, then the longest waiting one that still fits
joins it, until none does. The window is of fixed size, so that memory stays bounded, the result depends on the order of
the documents alone, and no document waits for ever (the oldest one always goes next).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator

from cairn.errors import UserError

WINDOW = 128


def pack(lengths: Iterable[int], capacity: int, *, window: int = WINDOW) -> Iterator[list[int]]:
    """Group documents into sequences of at most `capacity` tokens.

    Args:
        lengths: tokens of each document, in order.
        capacity: tokens that a sequence holds.
        window: how many documents may wait at once; more pack tighter and reorder further.

    Yields:
        The indexes of one sequence's documents; each index exactly once over all sequences.

    Raises:
        UserError: a document longer than the capacity, or one of no tokens.
    """
    if capacity < 1 or window < 1:
        raise UserError(f"cannot pack into {capacity} tokens with a window of {window}", remedy="both must be at least 1")
    waiting: deque[int] = deque()  # indexes in order of arrival; may still name documents that were taken
    by_length: list[tuple[int, int]] = []  # (length, -index) of those waiting: of equal lengths the oldest sorts last
    length_of: dict[int, int] = {}
    stream = enumerate(lengths)

    def refill() -> None:
        while len(by_length) < window:
            index, length = next(stream, (-1, 0))
            if index < 0:
                return
            if not 0 < length <= capacity:
                raise UserError(
                    f"a document of {length} tokens cannot be packed into sequences of {capacity}",
                    where=f"document {index}",
                    remedy="raise the sequence length, or let rows that are too long be split, truncated or dropped",
                )
            waiting.append(index)
            length_of[index] = length
            insort(by_length, (length, -index))

    def take(length: int, index: int) -> None:
        del by_length[bisect_right(by_length, (length, -index)) - 1]
        del length_of[index]

    while True:
        refill()
        while waiting and waiting[0] not in length_of:
            waiting.popleft()
        if not waiting:
            return
        index = waiting.popleft()
        sequence, room = [index], capacity - length_of[index]
        take(length_of[index], index)
        while room:
            refill()
            place = bisect_right(by_length, (room, 1)) - 1
            if place < 0:
                break
            length, minus = by_length[place]
            sequence.append(-minus)
            room -= length
            take(length, -minus)
        yield sequence
