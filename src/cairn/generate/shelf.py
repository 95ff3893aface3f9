"""Keys and values of many sequences in one set of tensors, so that a model can append to some rows in place. Knows no model.

Rows are aligned on the right, as in a batch padded on the left: to a model the sequences look like padded prompts, which every
family with a key-value cache understands, whatever its positions and windows are. All layers keep all tokens, those with a
sliding window too: a shared prefix and a rejected draft must be able to end at any token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SLACK = 0.8
"""Share of a shelf's columns that one sequence may fill. The rest lets rows grow for a while before they are moved back."""


class Shelf:
    """Rows of `columns` token places in every layer.

    Args:
        columns: places of a row.
        capacity: the longest sequence that is put here.
    """

    def __init__(self, columns: int, capacity: int) -> None:
        self.columns, self.capacity = columns, capacity
        self.slots: list[int] = []
        """Row: slot. Rows from here on are unused."""
        self.ends: dict[int, int] = {}
        """Slot: the column behind its last token."""
        self.lengths: dict[int, int] = {}
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._rows = 0

    def add(self, slot: int) -> None:
        """Give a slot an empty row."""
        if len(self.slots) == self._rows:
            self._resize(max(4, self._rows + self._rows // 2))
        self.slots.append(slot)
        self.ends[slot] = self.lengths[slot] = 0

    def remove(self, slot: int) -> None:
        """Free a slot's row; the last one takes its place."""
        row, last = self.slots.index(slot), len(self.slots) - 1
        if row != last:
            for tensor in self._tensors():
                tensor[row].copy_(tensor[last])
            self.slots[row] = self.slots[last]
        self.slots.pop()
        del self.ends[slot], self.lengths[slot]
        if not self.slots:
            # An empty shelf beside a full one would hold the memory that the budget has given to the full one.
            self._layers, self._rows = [], 0
        elif 4 * len(self.slots) < self._rows:
            self._resize(2 * len(self.slots))

    def read(self, slot: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [heads, length, width] of every layer: the first `length` tokens, not copied."""
        row, begin = self.slots.index(slot), self.ends[slot] - self.lengths[slot]
        return [(k[row, :, begin : begin + length], v[row, :, begin : begin + length]) for k, v in self._layers]

    def write(self, slot: int, layers: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Fill an empty row."""
        row = self.slots.index(slot)
        for index, (keys, values) in enumerate(layers):
            own_keys, own_values = self.layer(index, keys[None], values[None])
            own_keys[row, :, :length] = keys
            own_values[row, :, :length] = values
        self.ends[slot] = self.lengths[slot] = length

    def shorten(self, slot: int, length: int) -> None:
        """Drop the tokens of a row beyond `length`."""
        self.ends[slot] -= self.lengths[slot] - length
        self.lengths[slot] = length

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's tensors [rows, heads, columns, width]; made when a layer writes for the first time, like what it writes."""
        if index == len(self._layers):
            # Zeros, not whatever was there: a masked place still takes part in a product, and 0 times NaN is NaN.
            made = [x.new_zeros(self._rows, x.shape[1], self.columns, x.shape[3]) for x in (keys, values)]
            self._layers.append((made[0], made[1]))
        return self._layers[index]

    def gather(self, slots: Sequence[int], front: bool) -> int:
        """Bring the slots' rows side by side, without regard to their order, and give the first one's number.

        Args:
            slots: the rows that will run together.
            front: exchange rows with the first ones where they do not lie together yet, else with the last ones.
        """
        rows = sorted(self.slots.index(s) for s in slots)
        if rows[-1] - rows[0] == len(rows) - 1:
            return rows[0]
        first = 0 if front else len(self.slots) - len(rows)
        wanted = set(range(first, first + len(rows)))
        for a, b in zip(sorted(wanted - set(rows)), sorted(set(rows) - wanted), strict=True):
            for tensor in self._tensors():
                tensor[[a, b]] = tensor[[b, a]]
            self.slots[a], self.slots[b] = self.slots[b], self.slots[a]
        return first

    def align(self, slots: Sequence[int], first: int, new: int, left: bool) -> int:
        """Make the sequences of the rows from `first` on end in one column that leaves place for `new` more; gives that column.

        Args:
            slots: the slots in those rows.
            first: the first row.
            new: tokens that each is about to get.
            left: always move to the first columns, so that where a sequence lies hangs on itself alone.
        """
        ends, longest = [self.ends[s] for s in slots], max(self.lengths[s] for s in slots)
        end = max(ends)
        if left or end + new > self.columns:
            end = longest
        if len(set(ends)) == 1 and end != ends[0]:
            rows = slice(first, first + len(slots))
            for tensor in self._tensors():
                tensor[rows, :, end - longest : end] = tensor[rows, :, ends[0] - longest : ends[0]].clone()
        else:
            for slot in slots:
                old, length, row = self.ends[slot], self.lengths[slot], self.slots.index(slot)
                if old != end and length:
                    for tensor in self._tensors():
                        tensor[row, :, end - length : end] = tensor[row, :, old - length : old].clone()
        for slot in slots:
            self.ends[slot] = end
        return end

    def window(self, first: int, count: int, begin: int, end: int) -> Cache:
        """The rows as a transformers cache that holds the columns `begin` to `end` and appends in place."""
        made = _Window(layers=[])
        made.place = (self, slice(first, first + count), begin, end)
        made.layers.extend(_Layer(made.place, i) for i in range(len(self._layers)))
        return made

    def _tensors(self) -> list[Tensor]:
        return [tensor for layer in self._layers for tensor in layer]

    def _resize(self, rows: int) -> None:
        kept = len(self.slots)
        for index, layer in enumerate(self._layers):
            made = [tensor.new_zeros(rows, *tensor.shape[1:]) for tensor in layer]
            for new, old in zip(made, layer, strict=True):
                new[:kept] = old[:kept]
            self._layers[index] = (made[0], made[1])
        self._rows = rows


Place = tuple[Shelf, slice, int, int]


class _Window(Cache):
    """Rows of a shelf as transformers sees them. A layer that a shelf does not have yet is made when it is first written."""

    place: Place

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(_Layer(self.place, len(self.layers)))
        layer = self.layers[layer_idx]
        assert isinstance(layer, _Layer)
        return layer.update(key_states, value_states)


class _Layer(CacheLayerMixin):
    """One layer of some rows."""

    is_sliding = False

    def __init__(self, place: Place, index: int) -> None:
        super().__init__()
        self._shelf, self._rows, self._begin, self._end = place
        self._index = index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the shelf makes its tensors."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        keys, values = self._shelf.layer(self._index, key_states, value_states)
        after = self._end + key_states.shape[-2]
        keys[self._rows, :, self._end : after] = key_states
        values[self._rows, :, self._end : after] = value_states
        self.keys, self.values = keys[self._rows, :, self._begin : after], values[self._rows, :, self._begin : after]
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._end - self._begin + query_length, 0

    def get_seq_length(self) -> int:
        return self._end - self._begin

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` in transformers before 5.20."""
        return -1


def shelf_for(tokens: int, capacity: int) -> tuple[int, int]:
    """(columns, longest sequence) of the smallest shelf for a sequence; four sizes would do up to 32,768 tokens."""
    columns = 512
    while int(columns * SLACK) < min(tokens, capacity):
        columns *= 4
    longest = min(int(columns * SLACK), capacity)
    return min(columns, capacity + capacity // 4 + 1), longest


def padding_mask(lengths: Sequence[int], new: int, device: torch.device) -> Tensor | None:
    """long_BL, 0 on the left of shorter sequences; None where all are as long."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    pads_B1 = torch.tensor([longest - n for n in lengths], device=device)[:, None]
    return (torch.arange(longest + new, device=device) >= pads_B1).long()
