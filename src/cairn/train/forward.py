"""From a batch to hidden states and the loss at its targets. Knows models and packed batches; no files, no optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cairn.model.head import cross_entropy, head_of
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
    """

    ids_T: Tensor
    positions_T: Tensor
    predict_N: Tensor
    targets_N: Tensor
    document_N: Tensor
    lengths: tuple[int, ...]
    packed: bool

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
        predict, targets, document = (x.to(device) for x in (at - 1, ids[at], document))
        filling = -len(ids) % multiple if packed else 0
        if filling:
            ids, positions, lengths = F.pad(ids, (0, filling)), torch.cat((positions, torch.arange(filling))), (*lengths, filling)
        return TorchBatch(ids.to(device), positions.to(device), predict, targets, document, lengths, packed)


def hidden_states(model: Any, batch: TorchBatch) -> Tensor:
    """Last hidden states h_TD of all documents, none of which has seen another."""
    body = model.base_model
    if batch.packed:
        layout = Layout.of(batch.lengths, batch.ids_T.device)
        out = body(input_ids=batch.ids_T[None], position_ids=batch.positions_T[None], use_cache=False, packing=layout)
        return out.last_hidden_state[0]
    pieces = [body(input_ids=ids[None], use_cache=False).last_hidden_state[0] for ids in batch.ids_T.split(list(batch.lengths))]
    return torch.cat(pieces)


def target_loss(model: Any, batch: TorchBatch, z_loss: float = 0.0) -> Loss:
    """Σ −log p over the batch's targets, in nats; head and loss are computed at targets only."""
    h = hidden_states(model, batch)
    total, nll_N = cross_entropy(h.index_select(0, batch.predict_N), batch.targets_N, head_of(model), z_loss)
    return Loss(total, int(batch.predict_N.numel()), nll_N=nll_N)
