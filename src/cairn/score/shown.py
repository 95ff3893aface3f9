"""What a text shows of attributes that answers are asked to have, in numbers that can be counted. Pure functions of text.

Each number is in units of its own and says something only by rank: more of it for a higher level asked for. Jokes and rude words are those
of the built-in corpus; the rude ones are mild on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cairn.errors import UserError, did_you_mean

INSULTS = ("fool", "dunce", "clown", "goof")
JOKES = ("Ha ha!", "Just kidding!", "What a joke!", "How funny!")

_WORD = re.compile(r"[^\W\d_]+")
_PLAIN = re.compile(r"[^.!?]+\.")


@dataclass(frozen=True)
class Measure:
    """A number that a text shows."""

    what: str
    """What is counted, one line; it is printed beside the numbers."""
    of: Callable[[str], float]
    """text -> the number"""


def _plain(text: str) -> list[list[str]]:
    """The words of each sentence that ends with a full stop."""
    return [words for sentence in _PLAIN.findall(text) if (words := _WORD.findall(sentence))]


def _complexity(text: str) -> float:
    longest = [max(map(len, words)) for words in _plain(text)]
    return sum(longest) / len(longest) if longest else 0.0


MEASURES: Mapping[str, Measure] = {
    "verbosity": Measure("words in sentences that end with a full stop", lambda text: float(sum(map(len, _plain(text))))),
    "complexity": Measure("letters of the longest word of such a sentence, their mean", _complexity),
    "humor": Measure("jokes", lambda text: float(sum(text.count(joke) for joke in JOKES))),
    "toxicity": Measure("rude words", lambda text: float(sum(word.lower() in INSULTS for word in _WORD.findall(text)))),
}


def get_measure(name: str) -> Measure:
    """The measure of an attribute.

    Raises:
        UserError: nothing is counted for it.
    """
    if name not in MEASURES:
        raise UserError(f"nothing is counted for the attribute '{name}'", remedy=did_you_mean(name, MEASURES))
    return MEASURES[name]
