"""What texts show of attributes."""

from __future__ import annotations

import pytest

from cairn.errors import UserError
from cairn.score.shown import INSULTS, JOKES, MEASURES, get_measure


def shown(text: str) -> dict[str, float]:
    return {name: measure.of(text) for name, measure in MEASURES.items()}


def test_of_any_text() -> None:
    assert shown("") == dict.fromkeys(("verbosity", "complexity", "humor", "toxicity"), 0.0)
    assert shown("You fool! It is good. Ha ha! Clowns.") == {"verbosity": 4.0, "complexity": 5.0, "humor": 1.0, "toxicity": 1.0}
    assert shown("1. 2. ...") == shown("")


def test_jokes_and_rude_words_are_no_sentences_of_their_own() -> None:
    rude = ", ".join(f"you {word}" for word in INSULTS)
    assert shown(f"{rude}! It is good. {' '.join(JOKES)}") == {"verbosity": 3.0, "complexity": 4.0, "humor": 4.0, "toxicity": 4.0}


def test_an_attribute_without_a_measure_is_named() -> None:
    with pytest.raises(UserError, match="nothing is counted for the attribute 'humour'") as error:
        get_measure("humour")
    assert "did you mean 'humor'?" in error.value.remedy
