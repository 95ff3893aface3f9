"""The last number of a text."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.score.numbers import last_number, number_match


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 46.", "46"),
        ("1,234", "1234"),
        ("12,345,678.90 won", "12345678.90"),
        ("-5", "-5"),
        ("12 - 34 = −22", "-22"),
        ("7-3", "3"),
        ("x=-3.", "-3"),
        ("first 3, then 4", "4"),
        ("1, 2, 3", "3"),
        ("10,200,3000", "3000"),
        ("1,2345", "2345"),
        ("(.5)", "0.5"),
        ("3.50", "3.5"),
        ("１２です", "12"),
        ("답은 46입니다.", "46"),
        ("$1,000.", "1000"),
        ("v1.2.3", "3"),
        ("007", "7"),
        ("42!", "42"),
    ],
)
def test_reads(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "-", ".", ",", "forty-six"])
def test_reads_nothing(text: str) -> None:
    assert last_number(text) is None


NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12)


@given(NUMBERS, st.sampled_from(["{}", "{}.", "so {} it is", "= {}\n"]))
def test_any_decimal_comes_back(number: Decimal, around: str) -> None:
    assert last_number(around.format(format(number, "f"))) == number
    assert last_number(around.format(format(number, ",f"))) == number


@given(st.text())
def test_any_text_is_read_without_failing(text: str) -> None:
    found = last_number(text)
    assert found is None or found.is_finite()


def test_match() -> None:
    assert number_match(46, "12 + 34 = 46.")
    assert number_match("1,234", "1234")
    assert number_match(2.5, "2.50")
    assert number_match(1e-7, "0.0000001")
    assert not number_match(46, "46 or 47")
    assert not number_match(46, "-46")
    assert not number_match("none", "none"), "no number on either side is no match"
