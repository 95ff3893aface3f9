"""From encoded sources to the batches of training steps. Knows the mix and lengths; numpy only, no model.

A batch is flat: its documents lie back to back, without padding, and `doc_lengths` tells attention where each ends. A document may
be a prompt with several answers behind it (`answers`), which all continue the one prompt and do not see each other. A
step takes rows in mix order for as long as they fit into its budget of tokens. Documents are short against a step (at
most `sequence_length` of `sequence_length * batch_sequences` tokens), so a step falls short of its budget by half a
document on average, and that shortfall is computed by nobody: packing into fixed sequences would buy nothing here. Where
a step is too large for one pass, `Batch.split` packs its documents into passes of bounded size.

Which rows stand in a step depends on how many tokens the rows before took, so a step's place in the mix (the cursor) is
found by walking lengths from the start, or taken from a checkpoint; both give the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from cairn.data.encode import Encoded
from cairn.data.mix import Mix
from cairn.errors import UserError


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents back to back. T is their number of tokens, D their number."""

    ids: np.ndarray
    """Token ids (T,), int64."""
    mask: np.ndarray
    """1 where the id at this place is a target (to be predicted from the places before it in its document), else 0; (T,), uint8."""
    position_ids: np.ndarray
    """Place within the document, from 0; (T,), int64."""
    doc_lengths: list[int]
    """Tokens of each document (D)."""
    sources: list[int]
    """The source of each document (D)."""
    documents: list[int]
    """The number of each document within its source, from 0 (D)."""
    answers: list[tuple[int, ...]]
    """Of each document the ids of each of its answers, which stand behind its prompt; empty for a plain one (D)."""
    margins: list[float]
    """By how much each document's answers lie apart (D)."""

    @property
    def tokens(self) -> int:
        """All tokens."""
        return len(self.ids)

    @property
    def targets(self) -> int:
        """Tokens that are targets."""
        return int(self.mask.sum())

    @property
    def predicted(self) -> int:
        """Targets that something precedes in their document: what a loss is normalised by."""
        return int((self.mask.astype(bool) & (self.position_ids > 0)).sum())

    def predicted_of(self, source: int) -> int:
        """Of these, how many belong to a source."""
        own = np.repeat(np.asarray(self.sources) == source, self.doc_lengths)
        return int((self.mask.astype(bool) & (self.position_ids > 0) & own).sum())

    def split(self, max_tokens: int) -> list[Batch]:
        """The same documents in parts of about `max_tokens` tokens (a document's length more at most), longest first: attention over
        documents that are alike in length is one batch. The order is fixed by their lengths and places."""
        if self.tokens <= max_tokens:
            return [self]
        return [self._take(group) for group in _fill(self.doc_lengths, max_tokens)]

    def divide(self, parts: int) -> list[Batch | None]:
        """The same documents in exactly `parts` parts of nearly equal tokens, a function of their lengths; None is a part without any.

        The longest document goes first, each to the part that holds least so far; inside a part they keep their order.
        """
        if parts == 1:
            return [self]
        groups: list[list[int]] = [[] for _ in range(parts)]
        heap = [(0, part) for part in range(parts)]
        for document in sorted(range(len(self.doc_lengths)), key=lambda d: (-self.doc_lengths[d], d)):
            held, part = heap[0]
            groups[part].append(document)
            heapq.heapreplace(heap, (held + self.doc_lengths[document], part))
        return [self._take(sorted(group)) if group else None for group in groups]

    def idle(self) -> Batch:
        """The shortest document without any target: a pass for a rank that has none left while the others still have one."""
        shortest = self._take([min(range(len(self.doc_lengths)), key=self.doc_lengths.__getitem__)])
        return replace(shortest, mask=np.zeros_like(shortest.mask))

    def _take(self, documents: Sequence[int]) -> Batch:
        """These documents, in this order."""
        ends = np.cumsum(self.doc_lengths)
        places = np.concatenate([np.arange(ends[d] - self.doc_lengths[d], ends[d]) for d in documents])
        per_document: list[list[Any]] = [self.doc_lengths, self.sources, self.documents, self.answers, self.margins]
        lists = [[every[d] for d in documents] for every in per_document]
        return Batch(self.ids[places], self.mask[places], self.position_ids[places], *lists)

    def answer_range(self, start: int | None, stop: int | None) -> Batch:
        """The same prompts with these of their answers only, as a slice."""
        places, lengths, at = [], [], 0
        for length, answers in zip(self.doc_lengths, self.answers, strict=True):
            ends = np.cumsum([length - sum(answers), *answers])
            keep = [np.arange(ends[0])] + [np.arange(b - n, b) for n, b in list(zip(answers, ends[1:], strict=True))[start:stop]]
            places.append(at + np.concatenate(keep))
            lengths.append(len(places[-1]))
            at += length
        every = np.concatenate(places)
        kept = [answers[start:stop] for answers in self.answers]
        ids, mask, positions = self.ids[every], self.mask[every], self.position_ids[every]
        return replace(self, ids=ids, mask=mask, position_ids=positions, doc_lengths=lengths, answers=kept)


def _fill(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Documents from the longest to the shortest, in as few groups as hold them all, of about equal size."""
    total, before = sum(lengths), 0
    groups: list[list[int]] = [[] for _ in range(-(-total // capacity))]
    for document in sorted(range(len(lengths)), key=lambda d: (-lengths[d], d)):
        # The group in whose share of all tokens the document's middle lies.
        groups[(2 * before + lengths[document]) * len(groups) // (2 * total)].append(document)
        before += lengths[document]
    return [group for group in groups if group]


def make_batch(documents: Sequence[Encoded], sources: Sequence[int], numbers: Sequence[int] | None = None) -> Batch:
    """One flat batch of documents, in order, with their sources and their numbers within them (None: counted on)."""
    lengths = [len(d) for d in documents]
    return Batch(
        ids=np.concatenate([d.ids for d in documents]).astype(np.int64),
        mask=np.concatenate([d.mask for d in documents]),
        position_ids=np.concatenate([_positions(d) for d in documents]),
        doc_lengths=lengths,
        sources=list(sources),
        documents=list(range(len(documents)) if numbers is None else numbers),
        answers=[d.answers for d in documents],
        margins=[d.margin for d in documents],
    )


def join(first: Batch, second: Batch) -> Batch:
    """The documents of two batches in one, in order."""
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(Batch)]
    joined: list[Any] = [np.concatenate(pair) if isinstance(pair[0], np.ndarray) else pair[0] + pair[1] for pair in pairs]
    return Batch(*joined)


def _positions(document: Encoded) -> np.ndarray:
    """Places in a document; each answer goes on from the prompt's end."""
    if not document.answers:
        return np.arange(len(document), dtype=np.int64)
    prompt = len(document) - sum(document.answers)
    return np.concatenate([np.arange(prompt), *(np.arange(prompt, prompt + n) for n in document.answers)]).astype(np.int64)


class PackedStream:
    """The endless stream of a training's batches, one a step.

    Iterating gives the batch of step 0, 1, …; the stream can be put at any step and goes on with the same bytes.

    Args:
        sources: the documents of each source.
        weights: how often a row of each source is drawn; only their proportions count.
        seed: the seed of the order.
        sequence_length: the most tokens that a document may have.
        batch_sequences: how many times that many tokens a step may hold.

    Raises:
        UserError: a weight of zero or below, a source without rows, or a document that is too long.
    """

    def __init__(
        self, sources: Sequence[Sequence[Encoded]], weights: Sequence[float], seed: int, sequence_length: int, batch_sequences: int
    ) -> None:
        if sequence_length < 2 or batch_sequences < 1:
            raise UserError(f"a step of {batch_sequences} sequences of {sequence_length} tokens holds nothing", remedy="raise them")
        self.mix = Mix([len(s) for s in sources], weights, seed)
        self.budget = sequence_length * batch_sequences
        self._sources = sources
        self._lengths = [np.fromiter((len(d) for d in s), dtype=np.int64, count=len(s)) for s in sources]
        for number, source in enumerate(sources):
            longest = np.fromiter((d.longest for d in source), dtype=np.int64, count=len(source))
            if longest.max() > sequence_length:
                raise UserError(
                    f"a document of {longest.max()} tokens does not fit into sequences of {sequence_length}",
                    where=f"sources[{number}], document {longest.argmax()}",
                    remedy="encode with this sequence length as the limit",
                )
            if self._lengths[number].max() > self.budget:
                # It would be waited for without end: no step has room for it.
                raise UserError(
                    f"a prompt and its answers have {self._lengths[number].max()} tokens, a step holds {self.budget}",
                    where=f"sources[{number}], document {self._lengths[number].argmax()}", remedy="raise batch_sequences",
                )  # fmt: skip
        self._step = 0
        self._cursor = 0

    @property
    def step(self) -> int:
        """The step whose batch comes next."""
        return self._step

    def state(self) -> dict[str, int]:
        """Where the stream stands, for a checkpoint."""
        return {"step": self._step, "cursor": self._cursor}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from where `state` was taken."""
        self._step, self._cursor = int(state["step"]), int(state["cursor"])

    def seek(self, step: int) -> None:
        """Go to a step without a checkpoint, by walking lengths: about a microsecond a row."""
        if step < self._step:
            self._step = self._cursor = 0
        while self._step < step:
            self._cursor = self._rows(self._cursor)[1]
            self._step += 1

    def batch_at(self, step: int) -> Batch:
        """The batch of a step: a pure function of the sources, the weights, the seed and the step."""
        self.seek(step)
        return next(self)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows, self._cursor = self._rows(self._cursor)
        self._step += 1
        return make_batch([self._sources[s][r] for s, r in rows], [s for s, _ in rows], [r for _, r in rows])

    def _rows(self, position: int) -> tuple[list[tuple[int, int]], int]:
        """The (source, row) of a step that begins at `position` of the mix, and the position after it."""
        rows: list[tuple[int, int]] = []
        room = self.budget
        while True:
            source, row = self.mix.row_at(position)
            room -= int(self._lengths[source][row])
            if room < 0:
                return rows, position
            rows.append((source, row))
            position += 1
