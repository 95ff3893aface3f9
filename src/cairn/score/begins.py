"""Whether an answer begins as it was told to. Knows nothing of models or suites."""

from __future__ import annotations

from typing import Any

from cairn.score.exact import normalise
from cairn.score.metric import Metric, words


def begins(expected: str, answer: str) -> bool:
    """Whether the first words of `answer` are `expected`, whatever their case; a longer word that begins alike is another one."""
    start, found = normalise(expected), normalise(answer)
    return bool(start) and found.startswith(start) and not found[len(start) : len(start) + 1].isalnum()


def _score(expected: Any, answer: Any, meta: Any) -> float:
    return float(begins(str(expected), words(answer)))


METRICS = {"begins": Metric("the answer's first words are the expected ones", _score)}
