"""One step of cairn's loop against the plain way: every document alone through transformers' own model and loss, both in fp32.

The loop's gradients are those that its optimiser would have been given, so that packing, fused products, the chunked head, the split
of a step into passes and the normalisation are all between them and the truth. Knows cairn and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ours import OneBatch
from worker import job, read_rows, reply

from cairn.data.encode import Encoded
from cairn.ledger.progress import Silent
from cairn.model.determinism import deterministic
from cairn.model.load import load_model
from cairn.train.config import Training
from cairn.train.loop import Trainer


class Recorder:
    """Stands where the optimiser stands, and keeps what it would have moved the weights by."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def step(self, factor: float, step: int, gradients: dict[str, torch.Tensor], shrink: float) -> set[str]:
        del factor, step
        self.gradients = {name: shrink * g.detach() for name, g in gradients.items()}
        return set()

    def state(self) -> dict[str, torch.Tensor]:
        return {}


def one_by_one(folder: str, documents: list[Encoded]) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss over all targets, and the gradient of every weight."""
    model = load_model(folder, "float32", eval_mode=False)
    targets = sum(d.targets for d in documents)
    total = 0.0
    for document in documents:
        ids = torch.as_tensor(document.ids).long()[None]
        labels = torch.where(torch.as_tensor(document.mask).bool()[None], ids, -100)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum") / targets
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in model.named_parameters()}


def packed(folder: str, documents: list[Encoded], training: Training, scratch: Path) -> tuple[float, dict[str, torch.Tensor], bool]:
    """The same of one step of the loop."""
    scratch.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(load_model(folder, "float32", eval_mode=False), OneBatch(documents), training, scratch, Silent())
    recorder: Any = Recorder()
    trainer.optimizer = recorder
    return trainer.one_step()["loss"], recorder.gradients, trainer.packed


def main() -> None:
    told = job()
    deterministic()
    documents = [Encoded(ids, mask) for ids, mask in read_rows(told["rows"])]
    loss, truth = one_by_one(told["model"], documents)
    ours, gradients, was_packed = packed(told["model"], documents, Training(**told["training"]), Path(told["folder"]))
    if gradients.keys() != truth.keys():
        raise ValueError(f"not the same weights: {sorted(gradients.keys() ^ truth.keys())}")
    # Relative to the largest entry of the weight's own gradient: an entry that is nearly zero has no digits of its own in fp32.
    errors = {name: float((gradients[name] - g).abs().max() / g.abs().max()) for name, g in truth.items()}
    worst = max(errors, key=lambda name: errors[name])
    reply(loss_error=abs(ours - loss) / abs(loss), gradient_error=errors[worst], worst=worst, weights=len(errors), packed=was_packed)


if __name__ == "__main__":
    main()
