"""One measured number and the file of samples that is its evidence. Knows no model and no suite."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from cairn.config import Config
from cairn.ledger.digest import file_digest
from cairn.ledger.store import write_atomically


class Result(Config):
    """A number of one model."""

    suite: str
    """The suite, and its group after a slash."""
    metric: str
    """What was counted."""
    right: str = ""
    """What counts as right, or what the number means, one line."""
    n: int
    """Questions asked, or documents read."""
    value: float
    """The share of right answers, or the perplexity, or bits per byte."""
    low: float | None
    """Lower end of the 95 % interval; None where one document alone gives none."""
    high: float | None
    """Upper end of the 95 % interval; None where one document alone gives none."""
    samples: str
    """The file of samples, relative to the results."""
    samples_sha256: str
    """Digest of that file."""
    detail: dict[str, Any] = Field(default_factory=dict)
    """More about how it came about: extractor, tokens, bytes."""


def write_samples(folder: Path, name: str, samples: Iterable[dict[str, Any]]) -> tuple[str, str]:
    """Write samples as JSON lines to `samples/<name>.jsonl` in `folder`; gives the relative path and the file's digest."""
    relative = f"samples/{name}.jsonl"
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    return relative, file_digest(path)


def side_by_side(results: list[list[Result]]) -> list[dict[str, Any]]:
    """Rows of several models' results: `{"suite", "metric", "n", "values": [{"value", "low", "high"}, …]}`, one value a model.

    Args:
        results: for each model its results; the same suites on the same data, hence rows of the same names and counts.
    """
    rows = []
    for row in zip(*results, strict=True):
        first = row[0]
        if any((r.suite, r.metric, r.n) != (first.suite, first.metric, first.n) for r in row):
            raise ValueError("the models were not asked the same questions")
        values = [{"value": r.value, "low": r.low, "high": r.high} for r in row]
        rows.append({"suite": first.suite, "metric": first.metric, "n": first.n, "values": values})
    return rows
