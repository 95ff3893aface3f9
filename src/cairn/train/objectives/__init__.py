"""Objectives: one file each, found by its name. Knows the files of this folder.

To add one, write `objectives/<name>.py` with a class `Objective` that has

- `targets`: "all" when every token of a row is a target, "mask" when the assistant's are, "answers" when a prompt's answers are compared;
- `loss(model, batch) -> Loss`;

and what else of `Base` is not as it is for the likelihood of tokens.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from cairn.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from cairn.train.config import Training


@dataclass
class Loss:
    """A micro-batch's loss.

    Attributes:
        total: the sum over its terms, with a gradient; the loop divides it by the global batch's normaliser.
        count: how many terms it sums.
        metrics: further figures, summed over the global batch.
        nll_N: −log p of each target of the batch, detached, where the objective has them; for reports only.
    """

    total: Tensor
    count: int
    metrics: dict[str, float] = field(default_factory=dict)
    nll_N: Tensor | None = None


class Base:
    """What the loop asks of an objective.

    Args:
        training: the configuration; None for the objective's defaults.
    """

    targets: Literal["all", "mask", "answers"] = "mask"
    head: Literal["language", "reward"] = "language"
    """Which head of a model it trains."""
    extra: int = 0
    """How many answers at the end of each document are not for `loss`: before it, `measure` sees them alone."""

    reference: Any = None
    """What a reference model gives each answer (`cairn.train.reference`), where one is needed."""
    of_source: Sequence[float] | None = None
    """How much a target of each source counts (C-RLFT, Wang et al. 2023: classes of data by their quality); None: all alike."""
    z_loss: float = 0.0
    """How much of log²Z a target's loss has beside its -log p."""
    teacher: Any = None
    """Who is learnt from (`cairn.train.teacher`), where one is needed."""
    rules: Mapping[str, Callable[[dict[str, float], int], str]] = {}
    """What is looked out for in its figures, by name (`cairn.train.preference.Adviser`)."""

    def __init__(self, training: Training | None = None) -> None:
        """Most need no more of it."""
        self.z_loss = training.z_loss if training is not None else 0.0

    def loss(self, model: Any, batch: Any) -> Loss:
        """The sum of a micro-batch's terms."""
        raise NotImplementedError

    def count(self, batch: Any) -> float:
        """How many terms a whole step sums: what its loss is divided by. Asked of the data room's batch, which every rank has read."""
        if self.of_source is None:
            return int(batch.predicted)
        return math.fsum(counts * batch.predicted_of(source) for source, counts in enumerate(self.of_source))

    def measure(self, model: Any, batch: Any) -> Tensor:
        """A number for each answer of a micro-batch, without a gradient: a log-probability, a reward."""
        raise NotImplementedError

    def gather(self, values_A: Tensor, batch: Any) -> list[float]:
        """Sums of what was measured on the `extra` answers of a micro-batch. Those over the whole step are the batches' `measured`."""
        raise NotImplementedError

    @contextmanager
    def rehearsing(self, documents: Sequence[Any]) -> Iterator[None]:
        """A context in which `loss` can be called on these documents of source 0 before the first step, so that it is compiled."""
        yield

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """What a step's line shows of `Loss.metrics`, summed over the global batch."""
        return sums


def objective_names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load_objective(name: str, training: Training | None = None) -> Base:
    """The objective of that name, for a training.

    Raises:
        UserError: no such file.
    """
    if name not in objective_names():
        raise UserError(f"unknown objective '{name}'", where="objective", remedy=did_you_mean(name, objective_names()))
    objective: Base = importlib.import_module(f"{__name__}.{name}").Objective(training)
    return objective
