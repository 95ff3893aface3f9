"""Perplexity and bits per byte on held-out rows. Knows models through their logits; no generation and no training.

Perplexity is over supervised tokens: all of plain text, the assistant's turns of a dialogue; it compares models of one
tokenizer. Bits per byte divides by the UTF-8 bytes of the scored text instead, and compares models of any tokenizer. The
tokens that stop a turn are scored with the text that they end; the first token of a document has nothing before it and is not.

A document longer than the model's context is read in windows that overlap by half: every token is scored once, with at least
half a window before it. Documents of equal length run together, without padding, so that no document sees another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.errors import UserError
from cairn.evaluate.result import Result, write_samples
from cairn.evaluate.subject import Subject
from cairn.score.intervals import ratio_interval

Row = dict[str, Any]
LOGITS = 1 << 26
"""Numbers that the logits of one forward pass may have: 256 MiB in single precision."""


@dataclass(frozen=True)
class Window:
    """A piece of a document that goes through the model at once."""

    document: int
    """Which document."""
    ids: list[int]
    """Its tokens."""
    scored: list[int]
    """1 where the token is scored here."""


@dataclass
class Document:
    """What is known of one document after it was read."""

    id: str
    tokens: int
    """Scored tokens."""
    bytes: int
    """UTF-8 bytes of the scored text."""
    nats: float = 0.0
    """Negative log likelihood of the scored tokens."""


def windows(document: int, ids: Sequence[int], mask: Sequence[int], context: int) -> Iterator[Window]:
    """Cut a document into windows of at most `context` tokens: each token with mask 1 is scored in exactly one of them.

    Raises:
        ValueError: a context of less than 2 tokens, in which nothing can be predicted.
    """
    if context < 2:
        raise ValueError("a context of less than two tokens predicts nothing")
    # The first token of the document has no token before it.
    wanted = [0, *mask[1:]]
    start, scored_to = 0, 0
    while True:
        end = min(start + context, len(ids))
        scored = [0] * (scored_to - start) + [int(bool(m)) for m in wanted[scored_to:end]]
        if any(scored):
            yield Window(document, list(ids[start:end]), scored)
        if end >= len(ids):
            return
        scored_to = end
        # Half a window of context, and always at least one new token.
        start = end - max(1, context // 2)


def read_likelihood(
    subject: Subject,
    name: str,
    rows: Sequence[Row],
    folder: Path,
    *,
    context: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Perplexity and bits per byte of a model on held-out rows; sums a document go to `folder/samples/<name>.jsonl`.

    Args:
        subject: the model.
        name: under which the results stand.
        rows: checked rows, text or dialogues.
        folder: where the samples go.
        context: longest window, in tokens; None: the model's context, at most 1024.
        on_progress: called with (scored tokens, all tokens to score), first with none scored.

    Raises:
        UserError: nothing to score.
    """
    limit = min(c for c in (context or 1024, subject.context) if c is not None)
    documents: list[Document] = []
    pieces: list[Window] = []
    for row in rows:
        encoded = _encode(subject, row)
        if encoded is None:
            continue
        ids, mask, size = encoded
        pieces += windows(len(documents), ids, mask, limit)
        documents.append(Document(id=str(row.get("id", len(documents))), tokens=sum(map(bool, mask[1:])), bytes=size))
    if not documents:
        raise UserError(f"'{name}' has no token to score", remedy="give rows with text, or dialogues with an answer")
    total, done = sum(d.tokens for d in documents), 0
    if on_progress:
        on_progress(done, total)
    for batch in _batches(pieces, subject.model.config.get_text_config(decoder=True).vocab_size):
        for window, nats in zip(batch, _nats(subject.model, batch), strict=True):
            documents[window.document].nats += nats
            done += sum(window.scored)
        if on_progress:
            on_progress(done, total)
    return _results(name, documents, folder)


def _encode(subject: Subject, row: Row) -> tuple[list[int], list[int], int] | None:
    """Ids, mask and UTF-8 bytes of the scored text of a row; None where nothing is scored."""
    from cairn.data.encode import encode_row

    renderer = subject.renderer if "messages" in row else None
    encoded = encode_row(row, renderer, subject.tokenizer, max_length=1 << 40, overlong="drop", objective="supervised")
    if not encoded:
        return None
    ids, mask = encoded[0].ids.tolist(), encoded[0].mask.tolist()
    special = subject.tokenizer.special_ids
    if "text" in row:
        size = len(row["text"].encode())
        if ids[0] not in special:
            # Without a token that begins every document the first token of the text itself is given, not predicted.
            size -= len(subject.tokenizer.token_bytes(ids[0]))
    else:
        size = len(subject.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m and i not in special]).encode())
    return (ids, mask, size) if any(mask[1:]) else None


def _batches(pieces: list[Window], vocabulary: int) -> Iterator[list[Window]]:
    """Windows of equal length together, as many as the logits' bound allows."""
    batch: list[Window] = []
    for piece in sorted(pieces, key=lambda w: (len(w.ids), w.document)):
        length = len(piece.ids)
        if batch and (length != len(batch[0].ids) or (len(batch) + 1) * length * vocabulary > LOGITS):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _nats(model: Any, batch: list[Window]) -> list[float]:
    """Negative log likelihood of each window's scored tokens, summed in double precision."""
    import torch

    with torch.inference_mode():
        ids_BT = torch.tensor([w.ids for w in batch], device=model.device)
        # No attention mask and no cache: the windows have one length and stand alone.
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        sums = []
        for row, window in enumerate(batch):
            at_N = torch.tensor([t for t, scored in enumerate(window.scored) if scored], device=model.device)
            total = 0.0
            for part_M in at_N.split(max(1, LOGITS // 4 // logits_BTV.shape[-1])):
                scores_MV = logits_BTV[row, part_M - 1].double()
                picked_M = scores_MV.gather(1, ids_BT[row, part_M][:, None])[:, 0]
                total += float((scores_MV.logsumexp(dim=1) - picked_M).sum())
            sums.append(total)
    return sums


def _results(name: str, documents: list[Document], folder: Path) -> list[Result]:
    samples = [{"id": d.id, "tokens": d.tokens, "bytes": d.bytes, "nats": d.nats} for d in documents]
    path, digest = write_samples(folder, name, samples)
    detail = {"tokens": sum(d.tokens for d in documents), "bytes": sum(d.bytes for d in documents)}
    nats = [d.nats for d in documents]
    found = []
    tokens, bits = [float(d.tokens) for d in documents], [d.bytes * math.log(2) for d in documents]
    for metric, right, counts, scale, least in (
        ("perplexity", "lower is better; over supervised tokens", tokens, math.exp, 1.0),
        ("bits_per_byte", "lower is better; over the UTF-8 bytes of the scored text", bits, float, 0.0),
    ):
        if math.fsum(counts) <= 0:
            continue  # answers of special tokens alone have no bytes
        value, low, high = ratio_interval(nats, counts)
        ends = {"low": None if low is None else max(scale(low), least), "high": None if high is None else scale(high)}
        found.append(
            Result(
                suite=name, metric=metric, right=right, n=len(documents), value=scale(value), **ends,
                samples=path, samples_sha256=digest, detail=detail,
            )
        )  # fmt: skip
    return found
