"""Normalised exact match."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.score.exact import exact_match, normalise


@pytest.mark.parametrize("answer", ["Paris", " paris.", "PARIS!", "Paris\n", "paris ."])
def test_takes_the_same_answer_in_other_clothes(answer: str) -> None:
    assert exact_match("Paris", answer)


@pytest.mark.parametrize("answer", ["", "Pari", "Paris?", "It is Paris", "par is"])
def test_refuses_other_answers(answer: str) -> None:
    assert not exact_match("Paris", answer)


def test_hangul_composed_and_decomposed_are_one() -> None:
    assert exact_match("서울", unicodedata.normalize("NFD", "서울"))
    assert not exact_match("x2", "x²")


def test_one_of_several() -> None:
    assert exact_match(["USA", "United States"], "united  states")
    assert not exact_match([], "x")
    assert not exact_match("", ""), "silence is never right"


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text())
def test_every_text_matches_itself_unless_nothing_is_left_of_it(text: str) -> None:
    assert exact_match(text, text) == bool(normalise(text))
