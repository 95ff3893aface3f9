"""Where the documents of one packed row lie, in the words of each backend. Knows lengths only; no queries, no model.

Everything is computed when it is first asked for, once a layout: all layers of a model share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from cairn.model.packing.rules import Case

FILL = 0.8
"""A document joins a bucket when it is at least this share of the bucket's longest."""


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length: `count` rows of `length` tokens inside the padded order, starting at `start`."""

    start: int
    count: int
    length: int


@dataclass(frozen=True)
class Padded:
    """The padded order: documents sorted by length, each bucket padded to its longest.

    Attributes:
        to_padded_P: for each slot of the padded order the token that fills it (padding repeats the last token).
        to_flat_T: for each token its slot in the padded order.
        real_P: 1.0 where a slot holds a real token, or None where no slot is padding.
        buckets: the stretches of the padded order.
    """

    to_padded_P: Tensor
    to_flat_T: Tensor
    real_P: Tensor | None
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class Layout:
    """The documents of one packed row.

    Attributes:
        lengths: tokens of each document, each at least 1; they lie back to back.
        device: where the index tensors live.
        cases: what layers asked of attention over this row, filled as they run; None where nobody wants to know.
        masks: flex attention's block masks by window, made by the first layer that needs one.
    """

    lengths: tuple[int, ...]
    device: torch.device | str = "cpu"
    cases: set[Case] | None = field(default=None, compare=False, repr=False)
    masks: dict[int | None, Any] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Layout:
        """The layout of documents with these `lengths`, in tokens, each at least 1."""
        return Layout(tuple(lengths), device)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first token of each document, and the number of tokens at the end."""
        return (0, *accumulate(self.lengths))

    @property
    def tokens(self) -> int:
        return self.starts[-1]

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def borders_D(self) -> Tensor:
        """`starts` as int32: what FlashAttention calls cu_seqlens, one more than documents."""
        return torch.tensor(self.starts, dtype=torch.int32, device=self.device)

    @cached_property
    def first_T(self) -> Tensor:
        """For each token the first token of its document, int32."""
        counts = torch.tensor(self.lengths, dtype=torch.long, device=self.device)
        return self.borders_D[:-1].repeat_interleave(counts, output_size=self.tokens)

    @cached_property
    def padded(self) -> Padded:
        """The padded order."""
        lengths, starts, total = self.lengths, self.starts, self.tokens
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        pieces, buckets, at, first = [], [], 0, 0
        while first < len(order):
            longest, last = lengths[order[first]], first
            while last < len(order) and lengths[order[last]] >= FILL * longest:
                last += 1
            slots = torch.full((last - first, longest), total, dtype=torch.long)
            for row, doc in enumerate(order[first:last]):
                slots[row, : lengths[doc]] = torch.arange(starts[doc], starts[doc + 1])
            pieces.append(slots.view(-1))
            buckets.append(Bucket(at, last - first, longest))
            at, first = at + slots.numel(), last
        padded = torch.cat(pieces)
        real = padded < total
        to_flat = torch.empty(total, dtype=torch.long)
        to_flat[padded[real]] = torch.arange(at)[real]
        weight = None if bool(real.all()) else real.float().to(self.device)
        return Padded(padded.clamp(max=total - 1).to(self.device), to_flat.to(self.device), weight, tuple(buckets))
