"""What a teacher says at every target: computed beside the student, or kept as its top-k log-probabilities. Knows documents and models.

A file of the latter says of which documents it is and at which temperature, so that it cannot be used with others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cairn.data.batches import make_batch
from cairn.data.encode import Encoded
from cairn.errors import UserError
from cairn.model.head import chunks, head_of
from cairn.train.forward import TorchBatch, hidden_states
from cairn.train.reference import documents_digest, passes

LEAST = -30.0
"""The smallest log-probability of all ids outside of the top k together: log 0 would make 0 · log 0."""


@dataclass(frozen=True)
class Said:
    """A teacher's distribution at n targets.

    Attributes:
        logp_nO: log-probabilities of the outcomes, fp32: all V ids, or the top k and last the rest together.
        ids_nK: the ids of the top k; None where every id is an outcome.
    """

    logp_nO: Tensor
    ids_nK: Tensor | None = None

    def of_student(self, z_nV: Tensor) -> Tensor:
        """The student's log-probabilities of the same outcomes, from its logits."""
        logq_nV = torch.log_softmax(z_nV, -1)
        if self.ids_nK is None:
            return logq_nV
        # Summed over the others, not 1 - Σ: what is left beside a probability near 1 would be all rounding.
        rest_n1 = logq_nV.scatter(1, self.ids_nK, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logq_nV.gather(1, self.ids_nK), rest_n1.clamp_min(LEAST)], -1)


class Teacher(Protocol):
    """Whoever can be learnt from."""

    def hear(self, batch: TorchBatch, temperature: float) -> Callable[[slice], Said]:
        """What it says at the batch's targets, asked for chunk by chunk."""

    def states(self, batch: TorchBatch) -> Tensor:
        """Its last hidden states h_ND before the targets of the batch that it was heard on last."""


class Online:
    """A model in memory beside the student.

    Args:
        model: a causal LM, prepared as `train.reference.prepare` does.
        packed: whether it takes packed documents.
    """

    def __init__(self, model: Any, *, packed: bool) -> None:
        self.model, self.packed = model.eval().requires_grad_(False), packed
        self._last: tuple[TorchBatch, Tensor] | None = None

    def states(self, batch: TorchBatch) -> Tensor:
        assert self._last is not None, "it is heard first"
        heard, h_ND = self._last
        assert heard is batch, "it was heard on another batch"
        return h_ND

    @torch.no_grad()
    def hear(self, batch: TorchBatch, temperature: float) -> Callable[[slice], Said]:
        given = batch
        if batch.packed and not self.packed:
            filled = (*batch.answers, *((),) * (len(batch.lengths) - len(batch.answers)))
            batch = replace(batch, packed=False, answers=filled)
        h_ND = hidden_states(self.model, batch).index_select(0, batch.predict_N)
        self._last, head = (given, h_ND), head_of(self.model)
        return lambda part: Said(torch.log_softmax(_logits(head, h_ND[part]) / temperature, -1))


class Stored:
    """Top-k log-probabilities of every target of every document.

    Args:
        ids: for each source (P, K) int32, the ids of its P targets, document after document, the most probable first.
        logps: for each source (P, K + 1) float16, their log-probabilities, and that of all other ids together.
        counts: for each source the targets of each document.
        temperature: what the teacher's logits were divided by.
    """

    def __init__(
        self, ids: Sequence[np.ndarray], logps: Sequence[np.ndarray], counts: Sequence[np.ndarray], temperature: float
    ) -> None:
        self.ids, self.logps, self.temperature = list(ids), list(logps), temperature
        self.starts = [np.concatenate([np.zeros(1, np.int64), np.cumsum(count)]) for count in counts]

    @classmethod
    def empty(cls, sources: Sequence[Sequence[Encoded]], k: int, temperature: float) -> Stored:
        """Room for what is to be measured of these documents."""
        counts = [np.fromiter((targets_of(one) for one in source), np.int64, len(source)) for source in sources]
        rows = [int(count.sum()) for count in counts]
        return cls([np.zeros((n, k), np.int32) for n in rows], [np.zeros((n, k + 1), np.float16) for n in rows], counts, temperature)

    def hear(self, batch: TorchBatch, temperature: float) -> Callable[[slice], Said]:
        device = batch.ids_T.device
        places = [(source, *self.starts[source][document : document + 2]) for source, document in batch.origins]
        ids_NK = torch.from_numpy(np.concatenate([self.ids[s][a:b] for s, a, b in places])).to(device, torch.long)
        logp_NO = torch.from_numpy(np.concatenate([self.logps[s][a:b] for s, a, b in places])).to(device).float()
        # A pass that only keeps other ranks company has documents and no target.
        silent = not batch.predict_N.numel()
        assert silent or len(ids_NK) == batch.predict_N.numel(), "the teacher measured other targets"
        # What was rounded to 16 bits sums to one again.
        logp_NO = torch.log_softmax(logp_NO, -1).clamp_min(LEAST)
        return lambda part: Said(logp_NO[part], ids_NK[part])

    def states(self, batch: TorchBatch) -> Tensor:
        raise TypeError("no hidden states are kept of a teacher")


class Mute:
    """Says of every target that it is as probable as all else together: for a rehearsal before there is a teacher."""

    def states(self, batch: TorchBatch) -> Tensor:
        # Of any width: one number a target.
        return torch.ones(len(batch.targets_N), 1, device=batch.ids_T.device)

    def hear(self, batch: TorchBatch, temperature: float) -> Callable[[slice], Said]:
        half_N2 = torch.full((len(batch.targets_N), 2), 0.5, device=batch.ids_T.device).log()
        return lambda part: Said(half_N2[part], batch.targets_N[part, None])


def targets_of(document: Encoded) -> int:
    """Targets that something precedes; `TorchBatch` has no others."""
    return int(document.mask[1:].sum())


def _logits(head: Any, h_nD: Tensor) -> Tensor:
    logits: Tensor = head.logits(h_nD).float()
    return logits


@torch.no_grad()
def measure(
    model: Any, sources: Sequence[Sequence[Encoded]], k: int, temperature: float, capacity: int, *, packed: bool, device: str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Stored, float]:
    """A teacher's top k at every target of these documents.

    Args:
        model: a causal LM, prepared as `train.reference.prepare` does.
        sources: the documents.
        k: how many ids are kept a target, at most all but one of the vocabulary.
        temperature: what logits are divided by.
        capacity: tokens of a pass.
        packed: as in `TorchBatch`.
        device: where it computes.
        on_progress: told (documents done, all documents).

    Returns:
        What it says; and the mean share of probability that lies in the top k.

    Raises:
        UserError: probabilities that are not finite.
    """
    head = head_of(model)
    k = min(k, head.weight_VD.shape[0] - 1)
    stored, inside, done, total = Stored.empty(sources, k, temperature), 0.0, 0, sum(map(len, sources))
    for part in passes(sources, capacity):
        numbers = [s for s, _ in part], [d for _, d in part]
        arrays = make_batch([sources[s][d] for s, d in part], *numbers)
        batch = TorchBatch.of(arrays, device, packed=packed, multiple=max(1, capacity // 32))
        h_ND = hidden_states(model, batch).index_select(0, batch.predict_N)
        ids, logps = [], []
        for piece in chunks(len(h_ND), head.weight_VD.shape[0]):
            logp_nV = torch.log_softmax(_logits(head, h_ND[piece]) / temperature, -1)
            top = logp_nV.topk(k, -1)
            rest_n1 = logp_nV.scatter(1, top.indices, -torch.inf).logsumexp(-1, keepdim=True).clamp_min(LEAST)
            inside += float(top.values.exp().sum())
            ids.append(top.indices.int().cpu().numpy())
            logps.append(torch.cat([top.values.clamp_min(LEAST), rest_n1], -1).half().cpu().numpy())
        ids_NK, logp_NO = np.concatenate(ids), np.concatenate(logps)
        if not np.isfinite(logp_NO).all():
            remedy = "start from a sound model, or use precision: float32"
            raise UserError("the teacher gives probabilities that are not finite", where=f"source {part[0][0] + 1}", remedy=remedy)
        at = 0
        for source, document in part:
            start, end = stored.starts[source][document : document + 2]
            stored.ids[source][start:end] = ids_NK[at : at + end - start]
            stored.logps[source][start:end] = logp_NO[at : at + end - start]
            at += end - start
        done += len(part)
        on_progress(done, total)
    return stored, inside / max(1, sum(len(one) for one in stored.ids))


def save(stored: Stored, digest: str, path: Path) -> None:
    """Write it; bytes are a function of the numbers."""
    from safetensors.numpy import save_file

    arrays = {f"ids.{i}": ids for i, ids in enumerate(stored.ids)}
    arrays |= {f"logps.{i}": logps for i, logps in enumerate(stored.logps)}
    arrays |= {f"counts.{i}": np.diff(starts) for i, starts in enumerate(stored.starts)}
    aside = path.with_name(f".{path.name}.part")
    # One key: safetensors writes several in an order of chance, and a replay would give other bytes.
    save_file(arrays, aside, metadata={"heard": json.dumps({"documents": digest, "temperature": stored.temperature})})
    aside.replace(path)


def load(path: Path, sources: Sequence[Sequence[Encoded]], temperature: float) -> Stored:
    """Read it.

    Raises:
        UserError: it is of other documents or another temperature, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            told = json.loads((file.metadata() or {}).get("heard", "{}"))
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read what the teacher says: {error}", where=str(path), remedy="run its stage again") from error
    if told.get("documents") != documents_digest(sources):
        what = "the teacher was heard on other documents: other rows, another format, or other targets, sequence_length or overlong"
        remedy = "give both stages the same data, format, targets, sequence_length and overlong"
        raise UserError(what, where=str(path), remedy=remedy)
    if told["temperature"] != temperature:
        what = f"the teacher was heard at temperature {told['temperature']}, and the training asks for {temperature}"
        raise UserError(what, where="distillation.temperature", remedy="give both stages the same temperature")
    number = range(len(arrays) // 3)
    ids, logps, counts = ([arrays[f"{name}.{i}"] for i in number] for name in ("ids", "logps", "counts"))
    return Stored(ids, logps, counts, temperature)
