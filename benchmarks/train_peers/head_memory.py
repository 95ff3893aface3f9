"""What cairn's head and loss need in memory beyond the weight and its gradient, at one vocabulary. Knows cairn's head only.

The weight and its gradient are vocabulary × width by their nature. All else that lives while the loss and its gradients are computed
is counted: the process's peak over what it held before, less the gradients. A gradient in bf16 has a sum in fp32 behind it, since
chunks that are added in bf16 would be rounded away; that sum is taken off as well, and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from worker import job, peak_mb, reply

from cairn.model.load import dtype_of
from cairn.train.forward import TorchBatch
from cairn.train.objectives import load_objective


class Body(torch.nn.Module):
    """Gives the same hidden states whatever it is asked, so that head and loss are all that is measured."""

    def __init__(self, h_TD: torch.Tensor) -> None:
        super().__init__()
        self.h = torch.nn.Parameter(h_TD)

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.h[None])


class Model(torch.nn.Module):
    """A body and a head, with the face of a causal LM."""

    def __init__(self, weight_VD: torch.Tensor, h_TD: torch.Tensor) -> None:
        super().__init__()
        self.base_model = Body(h_TD)
        self.lm_head = torch.nn.Linear(1, 1, bias=False)
        self.lm_head.weight = torch.nn.Parameter(weight_VD)
        self.config = SimpleNamespace(model_type="head")

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.lm_head


def once(vocab: int, width: int, positions: int, dtype: torch.dtype) -> float:
    """Peak over what was held before the loss, in MB, less the gradients and the weight gradient's sum."""
    model = Model(torch.full((vocab, width), 0.01, dtype=dtype), torch.full((positions, width), 0.01, dtype=dtype))
    batch = SimpleNamespace(
        ids=torch.arange(positions).numpy() % vocab, mask=torch.ones(positions).numpy(), position_ids=torch.arange(positions).numpy(),
        doc_lengths=[positions], sources=[0],
    )  # fmt: skip
    part = TorchBatch.of(batch, "cpu", packed=True)
    # Linux takes the present size as the new peak.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak_mb()
    load_objective("language_model").loss(model, part).total.backward()
    gradients = sum(p.numel() * p.element_size() for p in model.parameters())
    sums = 0 if dtype == torch.float32 else 4 * vocab * width
    return peak_mb() - before - (gradients + sums) / 1e6


def main() -> None:
    told = job()
    dtype = dtype_of(told["precision"])
    # The libraries' own first use of memory is not the loss's.
    once(512, told["width"], 64, dtype)
    reply(mb=once(told["vocab"], told["width"], told["positions"], dtype))


if __name__ == "__main__":
    main()
