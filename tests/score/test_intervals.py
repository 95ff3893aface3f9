"""Intervals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.score.intervals import Z95, paired_difference, rank_interval, ratio_interval, wilson


def test_published_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, table I), the score method: 81/263, 15/148, 0/20, 1/29.
    for right, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]:
        assert wilson(right, n) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_nothing_tried() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_ends_solve_the_score_equation(case: tuple[int, int]) -> None:
    right, n = case
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(right / n - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / n), rel=1e-6)
    mirrored = wilson(n - right, n)
    assert mirrored == (pytest.approx(1 - high, abs=1e-12), pytest.approx(1 - low, abs=1e-12))


def test_ratio_interval_counts_groups_not_items() -> None:
    # Equal counts: the ratio is the mean, and the interval is that of a mean of groups.
    totals, counts = [10.0, 20.0, 30.0], [10.0, 10.0, 10.0]
    value, low, high = ratio_interval(totals, counts)
    assert value == 2.0
    assert high - value == pytest.approx(Z95 * 1.0 / math.sqrt(3))
    assert value - low == pytest.approx(high - value)
    assert ratio_interval([6.0], [3.0]) == (2.0, None, None)
    with pytest.raises(ValueError, match="nothing"):
        ratio_interval([], [])


def test_paired_difference() -> None:
    first, second = [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    value, low, high = paired_difference(first, second)
    deviation = math.sqrt(((1 - 0.25) ** 2 * 2 + 0.25**2 + 1.25**2) / 3)
    assert value == 0.25
    assert (low, high) == (pytest.approx(0.25 - Z95 * deviation / 2), 1.0)
    assert paired_difference(second, first)[0] == -0.25
    assert paired_difference([1.0] * 9, [1.0] * 9) == (0.0, 0.0, 0.0)
    assert paired_difference([0.0], [1.0]) == (1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([1.0], [1.0, 0.0])


def test_rank_interval() -> None:
    # atanh(0.5) = 0.549306; 1.959964 · sqrt(1.06 / 50) = 0.285374.
    ends = (math.tanh(0.549306 - 0.285374), math.tanh(0.549306 + 0.285374))
    assert rank_interval(0.5, 53) == (pytest.approx(ends[0], abs=1e-5), pytest.approx(ends[1], abs=1e-5))
    assert rank_interval(-0.5, 53) == tuple(-end for end in reversed(rank_interval(0.5, 53)))
    assert rank_interval(0.9, 3) == (-1.0, 1.0)
    assert rank_interval(1.0, 9) == (1.0, 1.0)


@given(st.floats(-0.999, 0.999), st.integers(4, 10_000))
def test_rank_interval_holds_its_value_and_narrows(value: float, n: int) -> None:
    low, high = rank_interval(value, n)
    assert -1 <= low <= value <= high <= 1
    wider = rank_interval(value, max(4, n // 2))
    assert wider[0] <= low <= high <= wider[1]
