"""Normalised exact match of text. Knows nothing of models, suites or languages beyond Unicode."""

from __future__ import annotations

import unicodedata
from typing import Any

from cairn.score.metric import Metric, words

_CLOSING = ".!。！"
"""Sentence ends that an answer may carry or lack without being another answer. A question mark is not among them."""


def normalise(text: str) -> str:
    """Text as it is compared: composed (NFC), case folded, white space single, no closing full stop or exclamation mark.

    NFC and not NFKC: composed and decomposed Hangul are one answer, but "x²" and "x2" are two.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split()).rstrip(_CLOSING).rstrip()


def exact_match(expected: str | list[str], answer: str) -> bool:
    """Whether `answer` is `expected` (or any one of several accepted texts) after `normalise`. An empty answer is never right."""
    accepted = [expected] if isinstance(expected, str) else expected
    found = normalise(answer)
    return bool(found) and any(normalise(text) == found for text in accepted)


def _score(expected: Any, answer: Any, meta: Any) -> float:
    return float(exact_match(expected if isinstance(expected, list) else str(expected), words(answer)))


METRICS = {"exact": Metric("the text, normalised, is the expected one or one of several accepted ones", _score)}
