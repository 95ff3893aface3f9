"""The mix: exact shares, each row once an epoch, and an order that depends on nothing but seed and position."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.data.mix import BLOCK, Mix, passes, show_passes
from cairn.errors import UserError

weights = st.floats(min_value=1e-3, max_value=1e3, allow_nan=False)
sources = st.lists(st.tuples(st.integers(1, 500), weights), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(sources, st.integers(0, 2**32), st.lists(st.integers(0, 5 * BLOCK), min_size=1, max_size=20))
def test_a_position_gives_the_same_row_whatever_was_asked_before(parts, seed, positions):
    sizes, shares = zip(*parts, strict=True)
    asked = Mix(sizes, shares, seed)
    found = [asked.row_at(p) for p in positions]
    for position, row in zip(positions, found, strict=True):
        assert Mix(sizes, shares, seed).row_at(position) == row
    for source, row in found:
        assert 0 <= row < sizes[source]


@settings(max_examples=40, deadline=None)
@given(sources, st.integers(1, 40))
def test_shares_are_exact_at_every_block(parts, blocks):
    sizes, shares = zip(*parts, strict=True)
    mix = Mix(sizes, shares, 0)
    total = sum(map(Fraction, shares))
    for block in range(1, blocks + 1):
        counts = mix.counts(block * BLOCK)
        assert sum(counts) == block * BLOCK
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - block * BLOCK * Fraction(share) / total) < 2


def test_counts_agree_with_the_rows_themselves():
    mix = Mix([7, 100, 3], [1, 2, 0.25], 5)
    seen = [0, 0, 0]
    for position in range(2 * BLOCK + 100):
        if position in (1, 1000, BLOCK, BLOCK + 17):
            assert mix.counts(position) == seen
        seen[mix.row_at(position)[0]] += 1
    assert mix.counts(2 * BLOCK + 100) == seen


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.1, 10)), min_size=1, max_size=4), st.integers(0, 99))
def test_every_row_comes_once_an_epoch(parts, seed):
    sizes, shares = zip(*parts, strict=True)
    mix = Mix(sizes, shares, seed)
    visits: list[list[int]] = [[] for _ in sizes]
    for position in range(BLOCK + BLOCK // 2):
        source, row = mix.row_at(position)
        visits[source].append(row)
    for size, rows in zip(sizes, visits, strict=True):
        for start in range(0, len(rows) - size + 1, size):
            assert sorted(rows[start : start + size]) == list(range(size))


def test_epochs_and_seeds_differ_in_order():
    one, other = Mix([50], [1], 1), Mix([50], [1], 2)
    first, second = [one.row_at(p) for p in range(50)], [one.row_at(p) for p in range(50, 100)]
    assert first != second
    assert first != [other.row_at(p) for p in range(50)]
    assert first != sorted(first)


def test_sources_are_interleaved_and_not_laid_end_to_end():
    mix = Mix([1000, 1000], [1, 1], 3)
    first = [mix.row_at(p)[0] for p in range(200)]
    assert 60 < sum(first) < 140


def test_blocks_are_shuffled_each_in_its_own_way():
    mix = Mix([1000, 1000], [1, 1], 3)
    one, two = ([mix.row_at(start + p)[0] for p in range(500)] for start in (0, BLOCK))
    assert one != two


def test_a_rare_source_comes_at_its_rate():
    mix = Mix([10, 10], [1, 1e-5], 0)
    assert mix.counts(30 * BLOCK)[1] in (1, 2)
    assert mix.counts(300 * BLOCK)[1] == 12


def test_only_proportions_count():
    assert [Mix([9, 9], [3, 1], 0).row_at(p) for p in range(99)] == [Mix([9, 9], [0.75, 0.25], 0).row_at(p) for p in range(99)]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_above_zero_is_refused(weight):
    with pytest.raises(UserError) as caught:
        Mix([1, 1], [1.0, weight], 0)
    assert "above zero" in caught.value.what
    assert caught.value.where == "sources[1].weight"
    assert caught.value.remedy


def test_a_source_without_rows_is_refused():
    with pytest.raises(UserError) as caught:
        Mix([1, 0], [1, 1], 0)
    assert caught.value.where == "sources[1]"
    with pytest.raises(UserError):
        Mix([], [], 0)
    with pytest.raises(UserError):
        Mix([1], [1, 1], 0)


def test_passes_are_those_of_the_order_itself():
    sizes, lengths, weights = [40, 10], [8.0, 30.0], [3.0, 1.0]
    tokens = 4 * BLOCK * (0.75 * 8 + 0.25 * 30)
    drawn = Mix(sizes, weights, seed=1).counts(4 * BLOCK)
    assert passes(tokens, sizes, lengths, weights) == pytest.approx([n / size for n, size in zip(drawn, sizes, strict=True)])
    assert [show_passes(n) for n in (0.1234, 3.14, 31.4, 12345.0)] == ["0.12 times", "3.1 times", "31 times", "12,345 times"]
