"""From a batch to hidden states and the loss at its targets. Knows models and packed batches; no files, no optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cairn.model.head import cross_entropy, head_of, log_probabilities
from cairn.model.packing import Layout
from cairn.train.objectives import Loss


@dataclass(frozen=True)
class TorchBatch:
    """A micro-batch of packed documents on the device.

    Attributes:
        ids_T: token ids, documents back to back.
        positions_T: positions, restarting at each document.
        predict_N: indices into T whose *next* token is a target.
        targets_N: those next tokens.
        document_N: the document that each target belongs to, by its place in `lengths`.
        lengths: document lengths, that of a filling at the end included.
        packed: whether the model may take all documents at once; otherwise they run one by one.
        answers: lengths of each document's answers, none for a plain one; a filling is not among them.
        answer_N: the answer that each target belongs to, counted over the batch (0 for targets of plain documents).
        ends_A: the last token of each answer.
        origins: (source, number in it) of each document.
        margins: by how much each document's answers lie apart.
        measured: what the objective's `gather` gave over the whole step.
    """

    ids_T: Tensor
    positions_T: Tensor
    predict_N: Tensor
    targets_N: Tensor
    document_N: Tensor
    lengths: tuple[int, ...]
    packed: bool
    answers: tuple[tuple[int, ...], ...]
    answer_N: Tensor
    ends_A: Tensor
    origins: tuple[tuple[int, int], ...]
    margins: tuple[float, ...]
    measured: tuple[float, ...] = ()

    @staticmethod
    def of(batch: Any, device: torch.device | str, *, packed: bool, multiple: int = 1) -> TorchBatch:
        """From the data room's arrays. A document's first token is never a target: nothing of its own document precedes it.

        Args:
            batch: a `data.batches.Batch`.
            device: where the tensors go.
            packed: as the attribute.
            multiple: packed tokens are filled up to a multiple of it by one document more, without targets: the fewer different sizes
                there are, the less has to be prepared for each (docs/experiments.md).
        """
        ids = torch.as_tensor(batch.ids, dtype=torch.long)
        mask = torch.as_tensor(batch.mask, dtype=torch.bool).clone()
        positions = torch.as_tensor(batch.position_ids, dtype=torch.long)
        mask[positions == 0] = False
        at = mask.nonzero()[:, 0]
        lengths = tuple(int(n) for n in batch.doc_lengths)
        document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[at]
        before, answer, ends = _answers(lengths, batch.answers)
        predict, targets, answer = before[at], ids[at], answer[at]
        filling = -len(ids) % multiple if packed else 0
        if filling:
            ids, positions, lengths = F.pad(ids, (0, filling)), torch.cat((positions, torch.arange(filling))), (*lengths, filling)
        moved = (ids, positions, predict, targets, document, answer, ends)
        ids, positions, predict, targets, document, answer, ends = (x.to(device) for x in moved)
        told = tuple(zip(batch.sources, batch.documents, strict=True)), tuple(batch.margins)
        return TorchBatch(ids, positions, predict, targets, document, lengths, packed, tuple(batch.answers), answer, ends, *told)

    @property
    def per_document(self) -> list[int]:
        """How many answers each document has, that of a filling left out."""
        return [len(answers) for answers in self.answers]


def _answers(lengths: tuple[int, ...], answers: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """For each token the one before it and its answer; for each answer its last token."""
    total = sum(lengths)
    before, answer = torch.arange(total) - 1, torch.zeros(total, dtype=torch.long)
    ends: list[int] = []
    at = 0
    for length, parts in zip(lengths, answers, strict=True):
        start = prompt = at + length - sum(parts)
        for part in parts:
            # What every answer goes on from is the prompt's last token, not the answer that happens to lie before it.
            before[start] = prompt - 1
            answer[start : start + part] = len(ends)
            start += part
            ends.append(start - 1)
        at += length
    return before, answer, torch.tensor(ends, dtype=torch.long)


def hidden_states(model: Any, batch: TorchBatch) -> Tensor:
    """Last hidden states h_TD of all documents, none of which has seen another."""
    body = model.base_model
    if batch.packed:
        answers = (*batch.answers, *((),) * (len(batch.lengths) - len(batch.answers)))
        layout = Layout.of(batch.lengths, batch.ids_T.device, answers)
        out = body(input_ids=batch.ids_T[None], position_ids=batch.positions_T[None], use_cache=False, packing=layout)
        return out.last_hidden_state[0]
    pieces = []
    for ids, parts in zip(batch.ids_T.split(list(batch.lengths)), batch.answers, strict=True):
        prompt, *rest = ids.split([len(ids) - sum(parts), *parts])
        first = body(input_ids=torch.cat([prompt, *rest[:1]])[None], use_cache=False).last_hidden_state[0]
        more = [body(input_ids=torch.cat([prompt, one])[None], use_cache=False).last_hidden_state[0][len(prompt) :] for one in rest[1:]]
        pieces += [first, *more]
    return torch.cat(pieces)


def answer_log_probabilities(model: Any, batch: TorchBatch) -> tuple[Tensor, Tensor]:
    """Σ log p over the targets of each answer given its prompt, in nats, and the number of its targets; both fp32."""
    count = sum(batch.per_document)
    h = hidden_states(model, batch)
    logp_N = log_probabilities(h.index_select(0, batch.predict_N), batch.targets_N, head_of(model))
    sizes = torch.zeros(count, device=logp_N.device).index_add_(0, batch.answer_N, torch.ones_like(logp_N))
    return torch.zeros(count, device=logp_N.device).index_add(0, batch.answer_N, logp_N), sizes


def target_loss(model: Any, batch: TorchBatch, z_loss: float = 0.0, of_source: Sequence[float] | None = None) -> Loss:
    """Σ −log p over the batch's targets, in nats; head and loss are computed at targets only.

    Args:
        model: the model.
        batch: the documents.
        z_loss: see `cross_entropy`.
        of_source: how much a target of each source counts; None: all alike.
    """
    h = hidden_states(model, batch)
    counts_N = None
    if of_source is not None:
        counts_D = torch.tensor([of_source[source] for source, _ in batch.origins], dtype=torch.float32, device=h.device)
        counts_N = counts_D[batch.document_N]
    total, nll_N = cross_entropy(h.index_select(0, batch.predict_N), batch.targets_N, head_of(model), z_loss, counts_N)
    return Loss(total, int(batch.predict_N.numel()), nll_N=nll_N)
