"""The learning rate's factor as a function of the step. Knows nothing else."""

from __future__ import annotations

import math

from cairn.train.config import ScheduleConfig


def factor(config: ScheduleConfig, step: int, total: int) -> float:
    """The factor of the peak rate at `step` (0-based) of `total`; at `total`, which is no step any more, it is `final`.

    The warm-up's first step is not 0, which would waste it, and for the same reason the last step is not `final` but one before it.

    Raises:
        ValueError: the schedule's phases do not fit into `total`.
    """
    warmup, decay = config.lengths(total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.kind == "constant":
        return 1.0
    left = min(1.0, (total - step) / max(1, decay))
    if config.kind == "cosine":
        left = 0.5 * (1.0 - math.cos(math.pi * left))
    peak = 1.0
    if config.kind == "inverse_sqrt":
        peak = max(config.final, math.sqrt((warmup + 1) / (min(step, total - decay) + 1)))
    return config.final + (peak - config.final) * left
