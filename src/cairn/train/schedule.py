"""The learning rate's factor as a function of the step. Knows nothing else."""

from __future__ import annotations

import math

from cairn.train.config import ScheduleConfig


def factor(config: ScheduleConfig, step: int, total: int) -> float:
    """The factor of the peak rate at `step` (0-based) of `total`.

    wsd: linear warm-up, 1, linear decay to `final` over the last share (Hu et al. 2024). The warm-up's first step is not 0, which
    would waste it, and the last step is not `final` exactly but one before it.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.kind == "constant":
        return 1.0
    if config.kind == "wsd":
        length = max(1, round(config.decay * total))
        left = min(1.0, (total - step) / length)
        return config.final + (1.0 - config.final) * left
    done = (step - warmup) / max(1, total - warmup)
    shape = 0.5 * (1.0 + math.cos(math.pi * done)) if config.kind == "cosine" else 1.0 - done
    return config.final + (1.0 - config.final) * shape
