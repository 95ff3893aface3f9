"""Which row of which source stands at which position of training. Knows sizes and weights; no file, row or token.

The order is a function of (seed, position), never a generator with a state, so that a run that was stopped goes on with
the very row that it would have had. Positions come in blocks of 4096; a block's rows are apportioned to the sources
by their weights (what rounding takes from a source in one block is owed to it in the next, so that long-run shares are
exact), then shuffled inside the block. Each source is walked epoch by epoch in a keyed permutation of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from cairn.errors import UserError
from cairn.ledger import seeds

BLOCK = 4096


class Mix:
    """An endless order over the rows of several sources.

    Args:
        sizes: rows of each source, each at least 1.
        weights: how often each source is drawn, in any unit; only their proportions count.
        seed: the seed of the order.

    Raises:
        UserError: a weight of zero or below, a source without rows, or lists of different lengths.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if not sizes:
            raise UserError("a mix needs at least one source", remedy="list a source under 'sources'")
        if len(sizes) != len(weights):
            raise UserError(f"{len(sizes)} sources but {len(weights)} weights", remedy="give one weight for each source")
        for i, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            if not math.isfinite(weight) or weight <= 0:
                what = f"a mix weight must be above zero, not {weight}"
                raise UserError(what, where=f"sources[{i}].weight", remedy="remove the source or raise it")
            if size < 1:
                raise UserError("a source has no rows", where=f"sources[{i}]", remedy="check its file, or remove the source")
        self.sizes = list(sizes)
        self.seed = seed
        # Whole numbers in the weights' exact proportions: float shares would drift from each other over 10^9 rows.
        exact = [Fraction(w) for w in weights]
        unit = math.lcm(*(f.denominator for f in exact))
        self._parts = [int(f * unit) for f in exact]
        self._whole = sum(self._parts)
        # _given[b][s]: how many rows of source s stand before block b. Grows as blocks are asked for.
        self._given: list[list[int]] = [[0] * len(sizes)]
        self._layout = lru_cache(maxsize=8)(self._lay_out)

    def row_at(self, position: int) -> tuple[int, int]:
        """(source, row) at `position`, both counted from 0. A pure function of the seed and the position."""
        if position < 0:
            raise IndexError(f"position {position} is below 0")
        block, slot = divmod(position, BLOCK)
        source_at, visit_at = self._layout(block)
        source = int(source_at[slot])
        size = self.sizes[source]
        epoch, visit = divmod(int(visit_at[slot]), size)
        return source, seeds.permute(visit, size, self.seed, f"mix/rows/{source}", epoch)

    def counts(self, positions: int) -> list[int]:
        """How many rows of each source stand before position `positions`."""
        block, rest = divmod(positions, BLOCK)
        out = list(self._before(block))
        if rest:
            for source, n in enumerate(np.bincount(self._layout(block)[0][:rest], minlength=len(out))):
                out[source] += int(n)
        return out

    def _before(self, block: int) -> list[int]:
        # A walk from the last known block costs microseconds a block: 10^9 rows are 244 141 blocks.
        while len(self._given) <= block:
            given = self._given[-1]
            self._given.append([g + n for g, n in zip(given, self._apportion(len(self._given), given), strict=True)])
        return self._given[block]

    def _apportion(self, blocks: int, given: list[int]) -> list[int]:
        """The counts of the block that ends at `blocks * BLOCK`, by largest remainder of what each source is due by then."""
        due = [part * blocks * BLOCK - g * self._whole for part, g in zip(self._parts, given, strict=True)]
        counts = [max(0, d // self._whole) for d in due]
        left = BLOCK - sum(counts)
        while left:  # at most one round, or two where a source that was rounded up before is now due less than nothing
            step = 1 if left > 0 else -1
            order = sorted(range(len(due)), key=lambda s: (-step * (due[s] - counts[s] * self._whole), s))
            for s in order[: abs(left)]:
                if counts[s] + step >= 0:
                    counts[s] += step
                    left -= step
        return counts

    def _lay_out(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each slot of the block: its source, and which visit to that source it is, counted from the start of training."""
        before, after = self._before(block), self._before(block + 1)
        counts = [a - b for a, b in zip(after, before, strict=True)]
        # Keys are a hash of (block's key, slot); their order is the shuffle. One numpy pass instead of 4096 Python walks.
        shuffle = np.argsort(_mix64(np.arange(BLOCK, dtype=np.uint64), seeds.seed(self.seed, "mix/block", block)), kind="stable")
        source_at = np.empty(BLOCK, dtype=np.int64)
        source_at[shuffle] = np.repeat(np.arange(len(counts)), counts)
        visit_at = np.empty(BLOCK, dtype=np.int64)
        for source, first in enumerate(before):
            slots = np.flatnonzero(source_at == source)
            # Visits count upwards along the block, so that a source's first epoch is over before its second begins.
            visit_at[slots] = first + np.arange(len(slots))
        return source_at, visit_at


def passes(tokens: float, documents: Sequence[float], lengths: Sequence[float], weights: Sequence[float]) -> list[float]:
    """How often each source is gone through in a training of so many tokens.

    Args:
        tokens: of the whole training.
        documents: how many each source has.
        lengths: their mean length, in tokens.
        weights: how often a source is drawn, in any unit.
    """
    drawn = tokens * sum(weights) / sum(w * n for w, n in zip(weights, lengths, strict=True))
    return [drawn * w / sum(weights) / count for w, count in zip(weights, documents, strict=True)]


def show_passes(value: float) -> str:
    """For people: "0.12 times", "31 times"."""
    return f"{value:.2g} times" if value < 10 else f"{value:,.0f} times"


def _mix64(values: np.ndarray, key: int) -> np.ndarray:
    """SplitMix64 over an array: the generator's n-th output for the state `key`."""
    with np.errstate(over="ignore"):
        x = np.uint64(key) + (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
