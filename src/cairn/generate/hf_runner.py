"""Any transformers causal language model behind slots. Knows no request and no sampling.

Which way a model is run is read off its structure and then checked with numbers, before its first tokens: sequences of
several lengths go through the batched way and through plain forwards without a cache, and where the logits differ the
next plainer way is taken:

- "batched": key-value cache, sequences of any lengths in one forward (`shelf.py`), padded on the left.
- "single": key-value cache, one sequence a forward; for models that take no padding. The deterministic mode runs this way too.
- "plain": no cache, every step computes its whole sequence again; for models with another state (Mamba, RWKV, Jamba). Slow, and right.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from cairn.generate.runner import Piece
from cairn.generate.shelf import Shelf, padding_mask, shelf_for
from cairn.model.context import context_length

Way = Literal["batched", "single", "plain"]

FEW = 8
"""Pieces of up to so many tokens count as decoding: their rows stay side by side at a shelf's beginning."""


class HfRunner:
    """Runs a transformers model.

    Args:
        model: a causal language model in evaluation mode.
        slots: how many sequences it holds.
        alone: run every piece by itself, from the first column on: its logits cannot depend on other pieces.
        way: how to run it; found out by `find_way` unless given.
    """

    def __init__(self, model: Any, slots: int, *, alone: bool = False, way: Way | None = None) -> None:
        self.model, self.slots, self.alone = model, slots, alone
        self.way: Way = find_way(model) if way is None else way
        self.capacity = context_length(model.config) or 1 << 30
        parameters = inspect.signature(model.forward).parameters
        self._keeps_logits, self._takes_positions = "logits_to_keep" in parameters, "position_ids" in parameters
        self._shelves: dict[int, Shelf] = {}
        self._home: dict[int, Shelf] = {}
        self._ids: dict[int, list[int]] = {}
        """Of the plain way: what each slot holds."""

    def cost(self, tokens: int) -> int:
        """Places of the row that a sequence of `tokens` takes at last."""
        return tokens if self.way == "plain" else shelf_for(tokens, self.capacity)[0]

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """See `Runner.forward`."""
        out: dict[int, Tensor] = {}
        run = self._run_plain if self.way == "plain" else self._run_cached
        for group in self._groups(pieces):
            out.update((piece.slot, rows_TV) for piece, rows_TV in zip(group, run(group), strict=True))
        return [out[p.slot] for p in pieces]

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """See `Runner.copy`."""
        self.truncate(target, 0)
        if self.way == "plain":
            self._ids[target] = self._ids.get(source, [])[:length]
        elif length:
            home = self._shelf(target, length)
            home.write(target, self._home[source].read(source, length), length)

    @torch.inference_mode()
    def truncate(self, slot: int, length: int) -> None:
        """See `Runner.truncate`."""
        if self.way == "plain":
            self._ids[slot] = self._ids.get(slot, [])[:length]
        elif slot in self._home:
            if length:
                self._home[slot].shorten(slot, length)
            else:
                self._home.pop(slot).remove(slot)

    def _shelf(self, slot: int, tokens: int) -> Shelf:
        """The shelf where a sequence of `tokens` belongs, with a row for the slot; what it held is moved there."""
        columns, capacity = shelf_for(tokens, self.capacity)
        home = self._home.get(slot)
        if home is not None and home.columns >= columns:
            return home
        shelf = self._shelves.setdefault(columns, Shelf(columns, capacity))
        shelf.add(slot)
        if home is not None:
            length = home.lengths[slot]
            shelf.write(slot, home.read(slot, length), length)
            home.remove(slot)
        self._home[slot] = shelf
        return shelf

    def _groups(self, pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
        """Pieces that run in one forward."""
        if self.way == "plain":
            # Without a cache a padded row would need a mask that such models do not take: only equals run together.
            whole = sorted(pieces, key=lambda p: p.start + len(p.ids))
            yield from (list(g) for _, g in groupby(whole, key=lambda p: p.start + len(p.ids)))
            return
        for piece in pieces:
            self.truncate(piece.slot, piece.start)
            self._shelf(piece.slot, piece.start + len(piece.ids))
        if self.alone or self.way == "single":
            yield from ([p] for p in pieces)
            return

        def kind(piece: Piece) -> tuple[int, int]:
            return self._home[piece.slot].columns, len(piece.ids)

        group: list[Piece] = []
        for piece in sorted(pieces, key=kind):
            if group and not self._together([*group, piece]):
                yield group
                group = []
            group.append(piece)
        if group:
            yield group

    def _together(self, group: list[Piece]) -> bool:
        """Whether a group, ordered by width of shelf and length, may run as one batch."""
        first, last = group[0], group[-1]
        short, long = len(first.ids), len(last.ids)
        shelf = self._home[last.slot]
        # Filled up behind its end, a sequence near the context's would pass it: tables of positions and biases end there.
        if self._home[first.slot] is not shelf or max(p.start for p in group) + long > min(shelf.columns, self.capacity):
            return False
        if short == 1:
            return long == 1
        # Padding 16 tokens to 512 computes 496 for nothing; a second forward is cheaper.
        return long <= FEW if short <= FEW else long <= 2 * short + 32

    def _run_cached(self, group: list[Piece]) -> list[Tensor]:
        """One forward: the wanted logits_TV of each piece."""
        slots, width = [p.slot for p in group], max(len(p.ids) for p in group)
        shelf = self._home[slots[0]]
        first = shelf.gather(slots, front=width <= FEW)
        end = shelf.align(slots, first, width, left=self.alone)
        row_of = [shelf.slots.index(s) - first for s in slots]
        pieces = [piece for _, piece in sorted(zip(row_of, group, strict=True), key=lambda x: x[0])]
        # Shorter pieces are filled up behind their end, where no token of theirs looks; what is kept of it there lies beyond `lengths`.
        ids_BT = torch.tensor([p.ids + [p.ids[-1]] * (width - len(p.ids)) for p in pieces], device=self.model.device)
        lengths = [p.start for p in pieces]
        longest = max(lengths)
        kept = max((width - len(p.ids) + p.wanted for p in pieces if p.wanted), default=1)
        inputs: dict[str, Any] = {"past_key_values": shelf.window(first, len(group), end - longest, end)}
        mask_BL = padding_mask(lengths, width, ids_BT.device)
        if mask_BL is not None:
            inputs["attention_mask"] = mask_BL
        if self._takes_positions:
            steps_T = torch.arange(width, device=ids_BT.device)
            start_B1 = torch.tensor(lengths, device=ids_BT.device)[:, None]
            own_B1 = torch.tensor([len(p.ids) - 1 for p in pieces], device=ids_BT.device)[:, None]
            inputs["position_ids"] = start_B1 + torch.minimum(steps_T, own_B1)
        logits_BTV = self._call(ids_BT, kept, use_cache=True, **inputs)
        for piece in pieces:
            shelf.ends[piece.slot] = end + len(piece.ids)
            shelf.lengths[piece.slot] = piece.start + len(piece.ids)
        # A piece's last token stands at len(ids) - 1 of the padded width, of which the last `kept` places came back.
        stops = [kept - width + len(p.ids) for p in group]
        return [logits_BTV[row, stop - p.wanted : stop] for row, stop, p in zip(row_of, stops, group, strict=True)]

    def _run_plain(self, group: list[Piece]) -> list[Tensor]:
        """Like `_run_cached`, for whole sequences of one length."""
        for piece in group:
            held = self._ids.get(piece.slot, [])
            self._ids[piece.slot] = held[: piece.start] + piece.ids
        asked = [piece for piece in group if piece.wanted]
        rows: dict[int, Tensor] = {}
        # One sequence a forward where its company must have no say.
        for part in [[piece] for piece in asked] if self.alone else [asked] if asked else []:
            ids_BT = torch.tensor([self._ids[p.slot] for p in part], device=self.model.device)
            kept = max(p.wanted for p in part)
            logits_BTV = self._call(ids_BT, kept, use_cache=False)
            rows.update((p.slot, row_TV[kept - p.wanted :]) for p, row_TV in zip(part, logits_BTV, strict=True))
        return [rows[p.slot] if p.wanted else torch.empty(0, 0) for p in group]

    def _call(self, ids_BT: Tensor, kept: int, **inputs: Any) -> Tensor:
        if self._keeps_logits:
            inputs["logits_to_keep"] = kept
        return self.model(input_ids=ids_BT, return_dict=True, **inputs).logits[:, -kept:]


def find_way(model: Any) -> Way:
    """The fastest way that gives the logits of plain forwards, on a few tokens, within the rounding of the model's precision."""
    ways: list[Way] = ["batched", "single"] if _takes_key_value_cache(model) else []
    if not ways:
        return "plain"
    vocab = int(model.get_input_embeddings().weight.shape[0])
    sequences = [[(7 * i + 3 * s + 1) % vocab for i in range(length)] for s, length in enumerate((5, 12, 17))]
    # Two pieces each and one token after: prefill, prefill upon a past of several lengths, decoding.
    cuts: list[tuple[int, ...]] = [(0, 2, 4, 5), (0, 9, 11, 12), (0, 12, 16, 17)]
    with torch.inference_mode():
        want = [model(input_ids=torch.tensor([s], device=model.device), use_cache=False, return_dict=True).logits[0] for s in sequences]
    for way in ways:
        if _agrees(HfRunner(model, len(sequences), way=way), sequences, cuts, want):
            return way
    return "plain"


def _agrees(runner: HfRunner, sequences: list[list[int]], cuts: list[tuple[int, ...]], want: list[Tensor]) -> bool:
    # A wrong mask or position gives errors near 1. A mixture of experts in bfloat16 may send a token elsewhere by rounding alone.
    tolerance = 1e-3 if want[0].dtype in (torch.float32, torch.float64) else 0.25
    try:
        for step in range(3):
            bounds = [(cut[step], cut[step + 1]) for cut in cuts]
            pieces = [Piece(i, s[a:b], a, b - a) for i, (s, (a, b)) in enumerate(zip(sequences, bounds, strict=True))]
            for got_TV, want_TV, (a, b) in zip(runner.forward(pieces), want, bounds, strict=True):
                error, size = (got_TV - want_TV[a:b]).float().norm(), want_TV[a:b].float().norm()
                if not error <= tolerance * size:
                    return False
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # The family's cache is not of keys and values, or its forward does not take one that was made elsewhere.
        return False
    return True


def _takes_key_value_cache(model: Any) -> bool:
    """Whether the model's family says that it works with transformers' growing key-value cache, and has no other state."""
    probe = getattr(type(model), "_supports_default_dynamic_cache", None)
    takes = "past_key_values" in inspect.signature(model.forward).parameters
    return takes and not getattr(model, "_is_stateful", False) and probe is not None and bool(probe())
