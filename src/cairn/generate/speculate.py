"""Drafts: several tokens of a sequence computed at once on a guess, at the price of about one. A runner around a runner.

Whoever asks for one token's logits gets them; the logits of drafted tokens behind it are kept, and given when those very tokens come to
be asked for. So whatever chooses tokens (greedy or drawn, under a penalty or a constraint) chooses as without drafts, draw by draw,
and a wrong draft costs only time. Answers are equal to plain decoding's to the bit where the runner's logits do not hang on what is
computed beside them (`FastRunner`), elsewhere up to near ties. Knows no request, no sampling and no text.

Prompt lookup: Saxena 2023. Draft models: Leviathan, Kalman and Matias 2023; accepting only what would have been chosen anyway is their
rule for greedy decoding, and for drawn tokens it keeps the distribution, since the draw is made from the model's own logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cairn.generate.runner import Piece, Runner
from cairn.generate.scheduler import common

BEYOND = 20
"""Tokens behind the last run that was found after which a copy counts as ended."""

ROW = 0.12
"""What a further token in a call costs, against a call of one token, where a runner does not say it (`row_cost`)."""


@dataclass(frozen=True)
class Ask:
    """A draft is wanted.

    Attributes:
        slot: names the sequence.
        ids: all of it, the token included whose logits were asked for.
        most: longest draft that is of use.
    """

    slot: int
    ids: list[int]
    most: int


class Drafter(Protocol):
    """Guesses how sequences go on."""

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """A draft for each, of any length from 0 to `most`."""
        ...

    def free(self, slot: int) -> None:
        """A sequence is over, or goes on otherwise than it did."""
        ...


@dataclass
class _Read:
    """What is known of a sequence: how many tokens were read, where each run of tokens last ended, and what was last found:
    the distance back to it, and the sequence's length then."""

    tokens: int = 0
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    back: int = 0
    found: int = 0


class PromptLookup:
    """What followed the last tokens when they stood earlier in the sequence. Where they never did, but a little earlier ones had: what
    stands beyond, for a copy goes on behind a word that is altered.

    Args:
        longest: the most last tokens that are looked for.
        shortest: the fewest.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._known: dict[int, _Read] = {}

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """See `Drafter.propose`."""
        return [self._one(ask) for ask in asks]

    def free(self, slot: int) -> None:
        """See `Drafter.free`."""
        self._known.pop(slot, None)

    def _one(self, ask: Ask) -> list[int]:
        ids, end = ask.ids, len(ask.ids)
        known = self._known.setdefault(ask.slot, _Read())
        # The run that ends with the last token is read at the next call: it must not find itself.
        for at in range(known.tokens + 1, end):
            for n in self._lengths:
                if at >= n:
                    known.ends[tuple(ids[at - n : at])] = at
        known.tokens = end - 1
        matches = (known.ends.get(tuple(ids[-n:])) for n in self._lengths if end > n)
        found = next((at for at in matches if at is not None), None)
        if found is not None:
            known.back, known.found = end - found, end
        elif known.back and end - known.found <= BEYOND:
            found = end - known.back
        return [] if found is None else self._repeat(ids[found : found + ask.most], ask.most)

    @staticmethod
    def _repeat(following: list[int], most: int) -> list[int]:
        """What followed, round and round: a run that repeats itself goes on doing so."""
        return [following[i % len(following)] for i in range(most)]


class DraftModel:
    """A small model of the same vocabulary says how it would go on.

    Args:
        runner: the small model, of as many slots.
        vocab: ids from here on are never drafted.
        sure: a draft ends with the first token to which the small model gives a smaller probability.
    """

    def __init__(self, runner: Runner, vocab: int, sure: float = 0.4) -> None:
        self._runner, self._vocab, self._sure = runner, vocab, sure
        self._held: dict[int, list[int]] = {}

    def free(self, slot: int) -> None:
        """See `Drafter.free`."""
        if self._held.pop(slot, None) is not None:
            self._runner.truncate(slot, 0)

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """See `Drafter.propose`; all drafts grow together, one call of the small model a token."""
        drafts: list[list[int]] = [[] for _ in asks]
        room = self._runner.capacity
        going = [(ask, draft) for ask, draft in zip(asks, drafts, strict=True) if ask.most and len(ask.ids) + ask.most <= room]
        for step in range(max((ask.most for ask, _ in going), default=0)):
            pieces = [self._piece(ask, draft) for ask, draft in going]
            if not pieces:
                break
            logits = self._runner.forward(pieces)
            last_BV = torch.stack([rows_TV[-1, : self._vocab] for rows_TV in logits]).float()
            best_B = last_BV.softmax(-1).max(-1)
            stay = []
            for (ask, draft), id, p in zip(going, best_B.indices.tolist(), best_B.values.tolist(), strict=True):
                if p >= self._sure:
                    draft.append(id)
                    if step + 1 < ask.most:
                        stay.append((ask, draft))
            going = stay
        return drafts

    def _piece(self, ask: Ask, draft: list[int]) -> Piece:
        """What the small model has not read of a sequence and its draft."""
        whole, held = ask.ids + draft, self._held.get(ask.slot, [])
        # At least the last token is computed, for its logits are asked for.
        start = min(common(held, whole), len(whole) - 1)
        self._held[ask.slot] = whole
        return Piece(ask.slot, whole[start:], start, 1)


@dataclass
class _Sequence:
    """One slot: its tokens, the logits of drafted ones by their place, and what became of its drafts."""

    ids: list[int] = field(default_factory=list)
    ahead: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    drafted: int = 0
    right: int = 0
    tried: float = 2.0
    true: float = 1.5
    misses: int = 0
    rest: int = 0

    def judge(self) -> None:
        """Count what the last draft was worth; after wholly wrong ones, pause a while."""
        if self.drafted:
            self.tried = 0.8 * self.tried + self.right + (self.right < self.drafted)
            self.true = 0.8 * self.true + self.right
            self.misses = 0 if self.right else self.misses + 1
            self.rest = min(self.misses // 2, 8)
        self.drafted = self.right = 0
        self.ahead.clear()

    def length(self, most: int, row_cost: float) -> int:
        """The draft of at most so many tokens that gives most tokens for its time, by the share that came true of late."""
        share = min(self.true / self.tried, 0.99)
        gained = likely = 1.0
        for drafted in range(most):
            likely *= share
            # A token more pays as long as it brings more for its cost than all so far did for theirs.
            if drafted and likely / row_cost < gained / (1 + row_cost * drafted):
                return drafted
            gained += likely
        return most


class Speculative:
    """A runner that drafts.

    Args:
        runner: what computes.
        drafter: what guesses.
        longest: the longest draft of a sequence.
        rows: drafts are cut so that a call computes at most so many tokens: beyond, they are no longer nearly free.
    """

    def __init__(self, runner: Runner, drafter: Drafter, *, longest: int = 16, rows: int = 24) -> None:
        self.runner, self.drafter = runner, drafter
        self.slots, self.capacity = runner.slots, runner.capacity
        self.invariant = bool(getattr(runner, "invariant", False))
        self.counts = {"calls": 0, "drafted": 0, "accepted": 0}
        self._longest, self._rows, self._row_cost = longest, rows, getattr(runner, "row_cost", ROW)
        self._sequences = [_Sequence() for _ in range(runner.slots)]

    def cost(self, tokens: int) -> int:
        """See `Runner.cost`."""
        return self.runner.cost(tokens)

    def truncate(self, slot: int, length: int) -> None:
        """See `Runner.truncate`."""
        self._rewind(slot, length)
        if length == 0:
            self._sequences[slot] = _Sequence()
        self.runner.truncate(slot, length)

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Runner.copy`."""
        ids = self._sequences[source].ids[:length]
        self.drafter.free(target)
        self._sequences[target] = _Sequence(ids)
        self.runner.copy(source, target, length)

    def _rewind(self, slot: int, length: int) -> None:
        sequence = self._sequences[slot]
        sequence.ahead.clear()
        if length < len(sequence.ids):
            del sequence.ids[length:]
            self.drafter.free(slot)

    def forward(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """See `Runner.forward`."""
        given = {i: rows_TV for i, piece in enumerate(pieces) if (rows_TV := self._kept(piece)) is not None}
        missing = [(i, piece) for i, piece in enumerate(pieces) if i not in given]
        if missing:
            given |= self._compute(missing)
        return [given[i] for i in range(len(pieces))]

    def _kept(self, piece: Piece) -> Tensor | None:
        """The logits of a token that was drafted rightly."""
        sequence = self._sequences[piece.slot]
        if len(piece.ids) != 1 or piece.wanted != 1 or piece.start != len(sequence.ids):
            return None
        id, logits_1V = sequence.ahead.get(piece.start, (None, None))
        if id != piece.ids[0]:
            return None
        sequence.ids += piece.ids
        sequence.right += 1
        self.counts["accepted"] += 1
        return logits_1V

    def _compute(self, missing: Sequence[tuple[int, Piece]]) -> dict[int, Tensor]:
        for _, piece in missing:
            self._sequences[piece.slot].judge()
            self._rewind(piece.slot, piece.start)
            self._sequences[piece.slot].ids += piece.ids
        drafts = self._drafts([piece for _, piece in missing])
        longer = [
            Piece(piece.slot, [*piece.ids, *draft], piece.start, piece.wanted + len(draft)) if draft else piece
            for (_, piece), draft in zip(missing, drafts, strict=True)
        ]
        self.counts["calls"] += 1
        given = {}
        for (i, piece), draft, rows_TV in zip(missing, drafts, self.runner.forward(longer), strict=True):
            given[i] = rows_TV[: piece.wanted]
            if draft:
                self.counts["drafted"] += len(draft)
                kept_TV = rows_TV[piece.wanted :].clone()  # the runner overwrites them at its next call
                at = piece.start + len(piece.ids)
                sequence = self._sequences[piece.slot]
                sequence.drafted, sequence.ahead = len(draft), {at + j: (id, kept_TV[j : j + 1]) for j, id in enumerate(draft)}
        return given

    def _drafts(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """A draft behind every single token; none behind parts of prompts."""
        left = self._rows - sum(len(piece.ids) for piece in pieces)
        single = [piece for piece in pieces if len(piece.ids) == 1 and piece.wanted == 1]
        asks = {}
        for piece in single:
            sequence = self._sequences[piece.slot]
            if sequence.rest:
                sequence.rest -= 1
                continue
            most = min(self._longest, left // len(single), self.capacity - piece.start - 1)
            if most > 0:
                asks[piece.slot] = Ask(piece.slot, sequence.ids, sequence.length(most, self._row_cost))
        found = dict(zip(asks, self.drafter.propose(list(asks.values())), strict=True)) if asks else {}
        return [found.get(piece.slot, []) if len(piece.ids) == 1 and piece.wanted == 1 else [] for piece in pieces]
