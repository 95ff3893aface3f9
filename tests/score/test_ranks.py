"""Spearman's correlation: known values, ties, and what no monotone change of the numbers moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.score.ranks import ranks, spearman


def test_ties_share_their_ranks():
    assert ranks([5, 1, 5, 2]) == [3.5, 1, 3.5, 2]


def test_known_values():
    assert spearman([1, 2, 3], [10, 20, 90]) == 1
    assert spearman([1, 2, 3], [3, 2, 1]) == -1
    # 1 - 6 Σd²/(n(n²-1)) with d = (0, 1, -1, 1, -1)
    assert spearman([1, 2, 3, 4, 5], [1, 3, 2, 5, 4]) == pytest.approx(0.8)
    assert spearman([0, 0, 1, 1], [0, 1, 0, 1]) == 0


def test_a_constant_side_has_none():
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="3 and 2 values"):
        spearman([1, 2, 3], [1, 2])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-5, 5)), min_size=2, max_size=30))
def test_only_the_order_counts(pairs):
    a, b = zip(*pairs, strict=True)
    found = spearman(a, b)
    assert found == spearman([x**3 for x in a], [2 * x + 1 for x in b])
    assert found is None or -1.0000001 <= found <= 1.0000001
