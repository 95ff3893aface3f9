"""A runner for decoders of known structure on a CPU: one call of a compiled forward a step, over packed weights and a static cache.

What a model must be like stands in `structure`; the arithmetic in `native/decoder.cpp`. Logits of a token are the same bits whatever
is computed beside it and however its prompt was cut, so an engine on this runner is deterministic at no cost, and drafts change nothing.
A model that is being trained hands its weights over with `renew`. Knows no request and no sampling.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cairn.generate import structure
from cairn.generate.native import build, pack
from cairn.generate.runner import Piece
from cairn.model.checksum import checksum

PAGE = 32
"""Tokens of a page of the cache, as in decoder.cpp."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}
"""Largest difference of a logit from the model's own, relative to the largest, that rounding explains."""


ROW_COST = {"float32": 0.1, "bfloat16": 0.1, "int8": 0.18, "int4": 0.45}
"""What a further row in a call costs, against a call of one row, whose time goes into reading weights: measured at 25 M parameters."""


class NotFast(Exception):
    """This model or machine has no compiled forward; the text says why. Run the model by its own forward then."""


class FastRunner:
    """A model's compiled forward. Takes packed copies of the weights beside the model's own.

    Args:
        model: a transformers causal LM in fp32 or bf16.
        slots: sequences that it holds.
        capacity: tokens of a slot, at most the model's context.
        weights: how they are kept: float32, bfloat16, int8 (a scale a row), int4 (a scale a row and 32 inputs); None: as the
            model has them.
        budget: tokens that slots hold together at most, beside one page more each; at least `capacity`. None: as many as fit.
        threads: None: as many as torch takes.
        max_rows: tokens that one call computes; longer ones are cut.
        check: compare with the model's own forward first.

    Raises:
        NotFast: the model is not of the known structure, does not agree, or nothing can be compiled here.
    """

    invariant = True
    """Logits do not depend, to the bit, on what else is computed or on how a sequence was cut into pieces."""

    def __init__(
        self, model: Any, slots: int, capacity: int, *, weights: str | None = None, budget: int | None = None,
        threads: int | None = None, max_rows: int = 256, check: bool = True,
    ) -> None:  # fmt: skip
        try:
            parts = structure.read(model)
            self.weights = weights or _own(model)
            self.row_cost = ROW_COST[self.weights]
            self._library = build.library(self.weights)
            if check:
                _check_structure(model)
        except (structure.Unlike, build.Unavailable) as error:
            raise NotFast(str(error)) from error
        self.slots, self.capacity, self.max_rows = slots, capacity, max_rows
        self.vocab = parts.head.weight.shape[0]
        self._ids = parts.embed_VH.shape[0]
        self._held = [0] * slots
        self._per_slot = -(-capacity // PAGE)
        most = slots * self._per_slot
        # A page more for each slot: drafts are computed beyond what their request is going to hold.
        pages = most if budget is None else min(most, -(-max(budget, capacity) // PAGE) + slots)
        self._free = list(range(pages))[::-1]
        self._pages: list[list[int]] = [[] for _ in range(slots)]
        self._table = (ctypes.c_int32 * most)()
        self._keep: list[Any] = [self._table]
        self._copies: list[tuple[list[Tensor], Callable[[], Sequence[Tensor]]]] = []
        """Tensors that hold weights, and what makes them out of the model's weights as they are now."""
        self._parts = parts
        with torch.no_grad():
            shape = self._shape(parts, pages, threads or torch.get_num_threads())
        self._decoder = self._library.decoder_new(ctypes.byref(shape))
        self._out = torch.empty(0, self._rows)
        if check and weights in (None, "float32", "bfloat16"):
            self._check_whole(model)

    def __del__(self) -> None:
        if getattr(self, "_decoder", None):
            self._library.decoder_free(self._decoder)

    # -- the runner ---------------------------------------------------------------------------------------------------

    def cost(self, tokens: int) -> int:
        """See `Runner.cost`: whole pages."""
        return -(-tokens // PAGE) * PAGE

    def forward(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """See `Runner.forward`; logits are fp32, and overwritten by the next call."""
        ids, slots, places, wanted = array("i"), array("i"), array("i"), array("i")
        if len({piece.slot for piece in pieces}) != len(pieces):
            raise ValueError("two pieces for one slot")
        for piece in pieces:
            self._check(piece)
            many, end = len(piece.ids), piece.start + len(piece.ids)
            wanted.extend(range(len(ids) + many - piece.wanted, len(ids) + many))
            ids.extend(piece.ids)
            slots.extend([piece.slot] * many)
            places.extend(range(piece.start, end))
            self._hold(piece.slot, end)
        out_WV = self._run(ids, slots, places, wanted)
        return list(out_WV[:, : self.vocab].split([piece.wanted for piece in pieces]))

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Runner.copy`."""
        if not 0 <= length <= self._held[source]:
            raise ValueError(f"slot {source} holds {self._held[source]} tokens, not {length}")
        if source != target:
            self._hold(target, length)
            self._library.decoder_copy(self._decoder, source, target, length)
        self._held[target] = length

    def truncate(self, slot: int, length: int) -> None:
        """See `Runner.truncate`."""
        self._hold(slot, min(self._held[slot], length))

    def _check(self, piece: Piece) -> None:
        """Refuse what would be read or written outside of the memory given for it."""
        many, held = len(piece.ids), self._held[piece.slot] if 0 <= piece.slot < self.slots else -1
        if not (many and 0 <= piece.wanted <= many and 0 <= piece.start <= held and piece.start + many <= self.capacity):
            raise ValueError(f"{many} tokens at {piece.start} do not fit slot {piece.slot}, which holds {held} of {self.capacity}")
        if min(piece.ids) < 0 or max(piece.ids) >= self._ids:
            raise ValueError(f"an id outside of 0 to {self._ids - 1}")

    def _hold(self, slot: int, length: int) -> None:
        """Give a slot as many pages as so many tokens need."""
        pages, need = self._pages[slot], -(-length // PAGE)
        while len(pages) > need:
            self._free.append(pages.pop())
        while len(pages) < need:
            if not self._free:
                raise MemoryError("the slots together hold more tokens than their budget")
            self._table[slot * self._per_slot + len(pages)] = self._free[-1]
            pages.append(self._free.pop())
        self._held[slot] = length

    def _run(self, ids: array[int], slots: array[int], places: array[int], wanted: array[int]) -> Tensor:
        rows = self._rows
        if self._out.shape[0] < len(wanted):
            self._out = torch.empty(max(len(wanted), 2 * self._out.shape[0]), rows)
        given = 0
        for first in range(0, len(ids), self.max_rows):
            last = min(first + self.max_rows, len(ids))
            here = wanted if last - first == len(ids) else array("i", [w - first for w in wanted[given:] if w < last])
            at = [a.buffer_info()[0] + 4 * first for a in (ids, slots, places)]
            out = self._out.data_ptr() + 4 * rows * given
            self._library.decoder_forward(self._decoder, last - first, *at, len(here), here.buffer_info()[0], out)
            given += len(here)
        return self._out[: len(wanted)]

    # -- the weights --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def renew(self) -> None:
        """Take the model's weights as they are now, into the memory of those before. Slots must be empty: they hold what those computed."""
        assert not any(self._held), "slots hold what other weights computed"
        for copies, make in self._copies:
            for copy, now in zip(copies, make(), strict=True):
                copy.copy_(now)

    def checksum(self) -> int:
        """Of the copies that compute; see `weights_checksum`."""
        return checksum(copy for copies, _ in self._copies for copy in copies)

    def weights_checksum(self) -> int:
        """Of the model's own weights: equal to `checksum` where the copies hold their numbers, in fp32 or bf16."""
        return checksum(structure.weights(self._parts))

    def _copy(self, copies: Sequence[Tensor], make: Callable[[], Sequence[Tensor]]) -> list[int]:
        """Addresses of tensors that were made out of weights by `make`, and are kept alive and renewed with this runner."""
        self._copies.append((list(copies), make))
        return [copy.data_ptr() for copy in copies]

    def _at(self, tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
        """Address of a tensor that is kept alive with this runner."""
        if tensor is None:
            return None
        kept = tensor.detach().to(dtype).contiguous()
        self._keep.append(kept)
        return kept.data_ptr()

    def _linear(self, layers: Sequence[nn.Linear], *, gated: bool = False) -> build.Linear:
        kind = self.weights  # named here: a maker that knew this runner would keep it alive in a circle

        def make() -> pack.Packed:
            return pack.linear([layer.weight for layer in layers], [layer.bias for layer in layers], kind, gated=gated)

        packed = make()
        at = iter(self._copy(packed.tensors, lambda: make().tensors))
        places = [next(at) if x is not None else None for x in (packed.weight, packed.scale, packed.bias)]
        return build.Linear(*places, packed.rows, packed.k)

    def _vector(self, weight: Tensor | None, *, to: int = 1) -> int | None:
        """Address of a vector in fp32, with zeros up to a multiple of `to`."""
        if weight is None:
            return None

        def make() -> list[Tensor]:
            return [pack.padded(weight.detach().float()[None], 1, pack.up(len(weight), to))[0].contiguous()]

        return self._copy(make(), make)[0]

    def _gain(self, weight: Tensor) -> int | None:
        return self._vector(weight, to=32)

    def _shape(self, parts: structure.Decoder, pages: int, threads: int) -> build.Shape:
        D, H = parts.head_dim, parts.embed_VH.shape[1]
        entries = pages * PAGE * parts.kv_heads
        dtype = torch.float32 if self.weights == "float32" else torch.bfloat16
        layers = (build.Layer * len(parts.blocks))()
        for layer, block in zip(layers, parts.blocks, strict=True):
            layer.qkv, layer.out = self._linear([block.q, block.k, block.v]), self._linear([block.out])
            layer.gate_up, layer.down = self._linear([block.gate, block.up], gated=True), self._linear([block.down])
            layer.norm1, layer.norm2 = self._gain(block.norm1), self._gain(block.norm2)
            layer.q_norm, layer.k_norm = self._vector(block.q_norm), self._vector(block.k_norm)
            layer.keys = self._at(torch.empty(entries * D, dtype=dtype), dtype)
            layer.values = self._at(torch.empty(entries * pack.up(D, 16), dtype=dtype), dtype)
            layer.window = block.window
        cos_TD, sin_TD = _angles(parts.rotary, self.capacity)
        head = self._linear([parts.head])
        self._rows = head.rows
        self._keep.append(layers)
        return build.Shape(
            layers=len(layers), hidden=H, heads=parts.heads, kv_heads=parts.kv_heads, head_dim=D,
            inner=parts.blocks[0].gate.weight.shape[0], capacity=self.capacity, max_rows=self.max_rows, threads=threads,
            embed_bf16=parts.embed_VH.dtype == torch.bfloat16, eps=parts.eps, scaling=parts.scaling,
            embed=self._copy([parts.embed_VH.detach().contiguous()], lambda: [parts.embed_VH.detach()])[0],
            cos=self._at(cos_TD[:, : D // 2]), sin=self._at(sin_TD[:, : D // 2]),
            pages=ctypes.addressof(self._table), norm=self._gain(parts.norm), head=head, layer=layers,
        )  # fmt: skip

    # -- the check ----------------------------------------------------------------------------------------------------

    def _check_whole(self, model: Any) -> None:
        ids = _probe_ids(self._ids, min(24, self.capacity))
        with torch.inference_mode():
            want_TV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        if not _agree(self, ids, want_TV, TOLERANCE[self.weights]):
            raise NotFast("the compiled forward does not give what the model's own gives")


def _own(model: Any) -> str:
    return "bfloat16" if model.lm_head.weight.dtype == torch.bfloat16 else "float32"


def _angles(rotary: nn.Module, capacity: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, T × head size, as the model's own module gives them in fp32."""
    cos_1TD, sin_1TD = rotary(torch.empty(1, dtype=torch.float32), torch.arange(capacity)[None])
    return cos_1TD[0], sin_1TD[0]


def _probe_ids(vocab: int, count: int) -> list[int]:
    """Ids spread over the vocabulary, without a pattern of positions."""
    return [(7 + 2654435761 * i) % vocab for i in range(count)]


def _check_structure(model: Any) -> None:
    """Compare both ways on a small fp32 copy: there a difference of structure cannot hide behind bf16's rounding.

    Raises:
        NotFast: they differ.
    """
    small = structure.probe(model)
    ids = _probe_ids(small.model.embed_tokens.weight.shape[0], 40)
    try:
        with torch.inference_mode():
            want_TV = small(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise NotFast(f"a small copy of the model does not give what it should: {error}") from error
    if not _agree(FastRunner(small, 1, 48, check=False), ids, want_TV, TOLERANCE["float32"]):
        raise NotFast("the compiled forward does not give what the model's own gives, though its parts look alike")


def _agree(runner: FastRunner, ids: list[int], want_TV: Tensor, tolerance: float) -> bool:
    """Whether the runner gives these logits, a part of the sequence at once and the rest token by token."""
    half = len(ids) // 2
    got = [runner.forward([Piece(0, ids[:half], 0, half)])[0].clone()]
    got += [runner.forward([Piece(0, [ids[t]], t, 1)])[0].clone() for t in range(half, len(ids))]
    runner.truncate(0, 0)
    difference = float((torch.cat(got) - want_TV).abs().max())
    return difference <= tolerance * float(want_TV.abs().max())
