"""The metrics by name. To add one, write a file in this folder with its function and a table `METRICS`; it is found by itself."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path

from cairn.errors import UserError, did_you_mean
from cairn.score.metric import Metric


@cache
def metrics() -> dict[str, Metric]:
    """All metrics of this folder, by name."""
    found: dict[str, Metric] = {}
    for info in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda info: info.name):
        for name, metric in getattr(import_module(f"cairn.score.{info.name}"), "METRICS", {}).items():
            if name in found:
                raise RuntimeError(f"two metrics are named '{name}'")
            found[name] = metric
    return found


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UserError: no metric has the name.
    """
    known = metrics()
    if name not in known:
        raise UserError(f"no metric is named '{name}'", remedy=did_you_mean(name, known))
    return known[name]
