"""Where the documents of one packed row lie, in the words of each backend. Knows lengths only; no queries, no model.

A document may be a prompt with several answers behind it, each of which sees the prompt and itself. All that a model does token by
token is done once for the prompt; for attention, each answer's path (the prompt and it) is laid out as a document of its own.
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
        real_P: 1.0 where a slot's output is a token's, or None where all are.
        buckets: the stretches of the padded order.
        again: further slots of tokens that several answers share: (tokens, slots) of their second, third, … one.
    """

    to_padded_P: Tensor
    to_flat_T: Tensor
    real_P: Tensor | None
    buckets: tuple[Bucket, ...]
    again: tuple[tuple[Tensor, Tensor], ...] = ()


@dataclass(frozen=True)
class Paths:
    """Prompts with answers as documents of their own: one for each answer, the prompt repeated.

    Attributes:
        lengths: tokens of each path.
        to_paths_P: the token in each place of the paths.
        to_flat_T: the first place of each token.
        again: (tokens, places) of prompts in their second, third, … path.
    """

    lengths: tuple[int, ...]
    to_paths_P: Tensor
    to_flat_T: Tensor
    again: tuple[tuple[Tensor, Tensor], ...]

    @cached_property
    def first_P(self) -> Tensor:
        """Whether a place is the first of its token: there its output is taken."""
        first = torch.zeros(len(self.to_paths_P), dtype=torch.bool)
        first[self.to_flat_T] = True
        return first


@dataclass(frozen=True)
class Layout:
    """The documents of one packed row.

    Attributes:
        lengths: tokens of each document, each at least 1; they lie back to back.
        device: where the index tensors live.
        cases: what layers asked of attention over this row, filled as they run; None where nobody wants to know.
        masks: flex attention's block masks by window, made by the first layer that needs one.
        answers: tokens of each answer at the end of each document, none for a plain one; empty where all are plain.
    """

    lengths: tuple[int, ...]
    device: torch.device | str = "cpu"
    cases: set[Case] | None = field(default=None, compare=False, repr=False)
    masks: dict[int | None, Any] = field(default_factory=dict, compare=False, repr=False)
    answers: tuple[tuple[int, ...], ...] = ()

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu", answers: Sequence[tuple[int, ...]] = ()) -> Layout:
        """The layout of documents with these `lengths`, in tokens, each at least 1, and of the `answers` at their ends."""
        return Layout(tuple(lengths), device, answers=tuple(answers) if any(answers) else ())

    @cached_property
    def paths(self) -> Paths | None:
        """The answers' paths; None where no document has answers."""
        if not self.answers:
            return None
        places, lengths, owned, at = [], [], torch.empty(self.tokens, dtype=torch.long), 0
        again: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for start, end, answers in zip(self.starts, self.starts[1:], self.answers, strict=False):
            prompt = torch.arange(start, end - sum(answers))
            token = start + len(prompt)
            for number, answer in enumerate(answers or (0,)):
                here = torch.arange(at, at + len(prompt))
                if number == 0:
                    owned[prompt] = here
                else:
                    again.setdefault(number, []).append((prompt, here))
                owned[token : token + answer] = torch.arange(at + len(prompt), at + len(prompt) + answer)
                places += [prompt, torch.arange(token, token + answer)]
                lengths.append(len(prompt) + answer)
                token, at = token + answer, at + lengths[-1]
        rounds = tuple((torch.cat([t for t, _ in pairs]), torch.cat([p for _, p in pairs])) for _, pairs in sorted(again.items()))
        return Paths(tuple(lengths), torch.cat(places), owned, rounds)

    @cached_property
    def apart(self) -> tuple[Layout, Tensor, Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        """For backends that know plain documents only: the paths' layout, and where tokens go and come from, on the device."""
        paths = self.paths
        assert paths is not None
        again = tuple((t.to(self.device), p.to(self.device)) for t, p in paths.again)
        layout = Layout(paths.lengths, self.device, self.cases)
        return layout, paths.to_paths_P.to(self.device), paths.to_flat_T.to(self.device), again

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
        """The padded order; of answers, that of their paths."""
        if self.paths is not None:
            inner = Layout(self.paths.lengths).padded
            owned = self.paths.first_P[inner.to_padded_P].float()
            weights = (owned if inner.real_P is None else owned * inner.real_P).to(self.device)
            again = tuple((t.to(self.device), inner.to_flat_T[p].to(self.device)) for t, p in self.paths.again)
            into, back = self.paths.to_paths_P[inner.to_padded_P], inner.to_flat_T[self.paths.to_flat_T]
            return Padded(into.to(self.device), back.to(self.device), weights, inner.buckets, again)
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
