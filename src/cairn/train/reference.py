"""What a reference model gives each answer: measured once, kept as numbers, looked up in training. Knows documents and models.

A file of it says of which documents it is (their digest), so that it cannot be used with other rows, another template or other limits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cairn.data.batches import make_batch
from cairn.data.encode import Encoded
from cairn.errors import UserError
from cairn.ledger.store import write_atomically
from cairn.model.context import check_length
from cairn.model.fused import fuse
from cairn.model.load import dtype_of
from cairn.model.packing import answers_agree, probe, try_packing
from cairn.train.forward import TorchBatch, answer_log_probabilities
from cairn.train.masters import is_plain
from cairn.train.ranks import Ranks

FILE = "reference.safetensors"


class Reference:
    """The log-probability of each answer of each document.

    Args:
        values: for each source all answers' values, fp32, document after document.
        counts: for each source the answers of each document.
    """

    def __init__(self, values: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> None:
        self.values = list(values)
        self.starts = [np.concatenate([np.zeros(1, np.int64), np.cumsum(count)]) for count in counts]

    def of(self, batch: TorchBatch, *, last: bool = False) -> Tensor:
        """Of a batch's answers, in their order: the first ones of each document, or only its last."""
        pieces = []
        for (source, document), count in zip(batch.origins, batch.per_document, strict=True):
            start, end = self.starts[source][document : document + 2]
            pieces.append(self.values[source][end - count : end] if last else self.values[source][start : start + count])
        return torch.from_numpy(np.concatenate(pieces)).to(batch.ids_T.device)


def documents_digest(sources: Sequence[Sequence[Encoded]]) -> str:
    """SHA-256 of what is measured: ids, targets and borders of all documents."""
    found = hashlib.sha256()
    for source in sources:
        for one in source:
            found.update(np.asarray([len(one), *one.answers], np.int64).tobytes())
            found.update(np.ascontiguousarray(one.ids, np.int32).tobytes() + np.ascontiguousarray(one.mask, np.uint8).tobytes())
        found.update(b"source")
    return found.hexdigest()


def passes(sources: Sequence[Sequence[Encoded]], capacity: int) -> Iterator[list[tuple[int, int]]]:
    """(source, document) of one pass after another: documents of like length together, at most `capacity` tokens or one document."""
    every = sorted((len(one), s, d) for s, source in enumerate(sources) for d, one in enumerate(source))
    part: list[tuple[int, int]] = []
    room = capacity
    for length, source, document in every:
        if part and length > room:
            yield part
            part, room = [], capacity
        part.append((source, document))
        room -= length
    if part:
        yield part


def measure(
    sources: Sequence[Sequence[Encoded]], capacity: int, values_of: Callable[[TorchBatch], Tensor], ranks: Ranks, *, packed: bool,
    even: bool = False, on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reference:
    """Measure all answers, the passes divided over the ranks.

    Args:
        sources: the documents.
        capacity: tokens of a pass.
        values_of: gives each answer of a batch its number.
        ranks: who takes part; all must.
        packed: as in `TorchBatch`.
        even: whether every rank must make as many passes.
        on_progress: told (documents done, all documents).
    """
    counts = [np.fromiter((len(one.answers) for one in source), np.int64, len(source)) for source in sources]
    reference = Reference([np.zeros(int(count.sum()), np.float32) for count in counts], counts)
    work = list(passes(sources, capacity))
    own, done, total = work[ranks.rank :: ranks.world], 0, sum(map(len, work))
    if even:
        # A pass is a collective where weights are divided: whoever has none left repeats its first one.
        own = own + (own or work)[:1] * (-(-len(work) // ranks.world) - len(own))
    found: dict[tuple[int, int], list[float]] = {}
    for part in own:
        batch = make_batch([sources[s][d] for s, d in part], [s for s, _ in part], [d for _, d in part])
        values = values_of(TorchBatch.of(batch, ranks.device, packed=packed, multiple=max(1, capacity // 32))).float().cpu()
        for place, mine in zip(part, values.split([len(answers) for answers in batch.answers]), strict=True):
            found[place] = mine.tolist()
        done += len(part) * ranks.world
        on_progress(min(done, total), total)
    for theirs in ranks.collect(found):
        for (source, document), values_A in theirs.items():
            start, end = reference.starts[source][document : document + 2]
            reference.values[source][start:end] = values_A
    broken = [s for s, values_A in enumerate(reference.values) if not np.isfinite(values_A).all()]
    if broken:
        raise UserError("the reference gives an answer a log-probability that is not finite", where=f"source {broken[0] + 1}",
                        remedy="start from a sound model, or use precision: float32")
    return reference


def prepare(model: Any, precision: str, longest: int) -> bool:
    """Make a causal LM measure as a training with this precision computes; whether documents may be packed.

    Raises:
        UserError: the model has fewer positions than the `longest` document has tokens.
    """
    check_length(model.config, longest)
    plain = model.config._attn_implementation
    packed = try_packing(model, longest=longest, dtype=dtype_of(precision)).packs
    if packed and not answers_agree(model):
        packed = False
        model.set_attn_implementation(plain)
    if packed:
        fuse(model, partial(probe, longest=longest))
    for p in model.parameters():
        if is_plain(p):
            p.data = p.data.to(dtype_of(precision))
    return packed


@torch.no_grad()
def values_of(model: Any, batch: TorchBatch) -> Tensor:
    """The log-probability of each answer of a batch."""
    return answer_log_probabilities(model, batch)[0]


def zeros(documents: Sequence[Encoded]) -> Reference:
    """A reference for documents that nobody measured."""
    counts = np.fromiter((len(one.answers) for one in documents), np.int64, len(documents))
    return Reference([np.zeros(int(counts.sum()), np.float32)], [counts])


def save(reference: Reference, digest: str, path: Path) -> None:
    """Write it; bytes are a function of the numbers. A training goes on from it: after a power cut it is whole, or it is not there."""
    from safetensors.numpy import save as as_bytes

    arrays = {f"values.{i}": values for i, values in enumerate(reference.values)}
    arrays |= {f"counts.{i}": np.diff(starts) for i, starts in enumerate(reference.starts)}
    write_atomically(path, as_bytes(arrays, metadata={"documents": digest}))


def load(path: Path, digest: str) -> Reference:
    """Read it.

    Raises:
        UserError: it is of other documents, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            told = (file.metadata() or {}).get("documents")
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the reference: {error}", where=str(path), remedy="run its stage again") from error
    if told != digest:
        what = "the reference was measured on other documents: other rows, another format, or another sequence_length, overlong or loss"
        remedy = "give both stages the same data, format, sequence_length and overlong; for kto, mismatched: true"
        raise UserError(what, where=str(path), remedy=remedy)
    number = len(arrays) // 2
    return Reference([arrays[f"values.{i}"] for i in range(number)], [arrays[f"counts.{i}"] for i in range(number)])
