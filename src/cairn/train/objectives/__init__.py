"""Objectives: one file each, found by its name. Knows the files of this folder.

To add one, write `objectives/<name>.py` with a class `Objective` that has

- `targets`: "all" when every token of a row is a target, "mask" when the assistant's are;
- `loss(model, batch) -> Loss`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from cairn.errors import UserError, did_you_mean


@dataclass
class Loss:
    """A micro-batch's loss.

    Attributes:
        total: the sum over its terms, with a gradient; the loop divides it by the global batch's normaliser.
        count: how many terms it sums (supervised tokens).
        metrics: further figures, summed over the global batch.
        nll_N: −log p of each target of the batch, detached, where the objective has them; for reports only.
    """

    total: Tensor
    count: int
    metrics: dict[str, float] = field(default_factory=dict)
    nll_N: Tensor | None = None


class Objective(Protocol):
    """What the loop asks of an objective."""

    targets: Literal["all", "mask"]

    def loss(self, model: Any, batch: Any) -> Loss: ...


def objective_names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        UserError: no such file.
    """
    if name not in objective_names():
        raise UserError(f"unknown objective '{name}'", where="objective", remedy=did_you_mean(name, objective_names()))
    return importlib.import_module(f"{__name__}.{name}").Objective()
