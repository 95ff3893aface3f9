"""Packing: every document exactly once, no sequence over its capacity, nothing but the order decides."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.data.pack import WINDOW, pack
from cairn.errors import UserError

lengths = st.lists(st.integers(1, 64), max_size=300)


@settings(max_examples=100, deadline=None)
@given(lengths, st.integers(64, 200), st.integers(1, 40))
def test_each_document_stands_once_and_capacity_is_kept(sizes, capacity, window):
    sequences = list(pack(sizes, capacity, window=window))
    assert sorted(itertools.chain(*sequences)) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in s) <= capacity for s in sequences)
    assert sequences == list(pack(iter(sizes), capacity, window=window))


@settings(max_examples=50, deadline=None)
@given(lengths, st.integers(1, 20))
def test_the_window_bounds_how_far_a_document_may_wait(sizes, window):
    oldest = 0
    taken: set[int] = set()
    for sequence in pack(sizes, 64, window=window):
        assert sequence[0] == oldest, "the oldest waiting document opens the next sequence"
        taken |= set(sequence)
        while oldest in taken:
            oldest += 1
        assert max(sequence) < len(sizes)


def test_it_reads_no_further_than_the_window():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield 10

    packed = pack(endless(), 40)
    assert len(next(packed)) == 4
    assert read <= WINDOW + 8


def test_best_fit_fills_what_first_fit_leaves():
    sizes = [60, 10, 39, 40]
    assert [sorted(s) for s in pack(sizes, 100)] == [[0, 3], [1, 2]]


def test_it_packs_tightly():
    sizes = [(i * 37) % 90 + 10 for i in range(2000)]
    sequences = list(pack(sizes, 256))
    assert sum(sizes) / (256 * len(sequences)) > 0.99


@pytest.mark.parametrize("length", [0, 65])
def test_a_document_that_does_not_fit_is_refused(length):
    with pytest.raises(UserError) as caught:
        list(pack([5, length], 64))
    assert caught.value.where == "document 1"
    assert "sequence length" in caught.value.remedy


def test_no_capacity_is_refused():
    with pytest.raises(UserError):
        list(pack([1], 0))
