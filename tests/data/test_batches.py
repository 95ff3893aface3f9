"""Batches: flat documents, a step within its budget, and a stream that goes on identically from any step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.data.batches import PackedStream, make_batch
from cairn.data.encode import document
from cairn.errors import UserError


def make_sources(sizes, seed=0):
    """Documents whose ids name their source, row and place."""
    rng = np.random.default_rng(seed)
    out = []
    for s, size in enumerate(sizes):
        docs = []
        for r in range(size):
            n = int(rng.integers(2, 33))
            docs.append(document([s * 1_000_000 + r * 100 + i for i in range(n)], [int(x) for x in rng.integers(0, 2, n)]))
        out.append(docs)
    return out


def bytes_of(batch):
    return (batch.ids.tobytes(), batch.mask.tobytes(), batch.position_ids.tobytes(), batch.doc_lengths, batch.sources, batch.documents)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(0, 1000), st.integers(1, 8), st.integers(0, 12))
def test_the_stream_goes_on_identically_from_any_step(sizes, seed, sequences, stop):
    sources, weights = make_sources(sizes), [1 + i for i in range(len(sizes))]

    def fresh():
        return PackedStream(sources, weights, seed, 32, sequences)

    whole = fresh()
    expected = [bytes_of(next(whole)) for _ in range(stop + 4)]
    first = fresh()
    for _ in range(stop):
        next(first)
    resumed = fresh()
    resumed.restore(first.state())
    assert resumed.step == stop
    assert [bytes_of(next(resumed)) for _ in range(4)] == expected[stop:]
    sought = fresh()
    assert bytes_of(sought.batch_at(stop)) == expected[stop]
    assert bytes_of(sought.batch_at(0)) == expected[0], "seeking goes back as well"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.integers(1, 6), st.integers(1, 200))
def test_batches_hold_whole_documents_within_the_budget(seed, sequences, part):
    sources = make_sources([40, 25])
    stream = PackedStream(sources, [1, 1], seed, 32, sequences)
    position = 0
    for _ in range(5):
        batch = next(stream)
        assert batch.tokens <= 32 * sequences
        assert batch.tokens == sum(batch.doc_lengths) == len(batch.mask) == len(batch.position_ids)
        assert batch.ids.dtype == np.int64
        start = 0
        for length, source, number in zip(batch.doc_lengths, batch.sources, batch.documents, strict=True):
            want = sources[source][number]
            assert stream.mix.row_at(position) == (source, number)
            assert batch.ids[start : start + length].tolist() == want.ids.tolist()
            assert batch.mask[start : start + length].tolist() == want.mask.tolist()
            assert batch.position_ids[start : start + length].tolist() == list(range(length))
            assert batch.mask[start] == 0, "nothing stands before a document's first id"
            start += length
            position += 1
        after_source, after_row = stream.mix.row_at(position)
        assert batch.tokens + len(sources[after_source][after_row]) > 32 * sequences, "the step is full"
        parts = batch.split(max(32, part))
        assert len(parts) <= -(-batch.tokens // max(32, part))
        assert all(p.tokens <= max(32, part) + max(batch.doc_lengths) for p in parts)
        shortest = [min(p.doc_lengths) for p in parts]
        assert all(max(after.doc_lengths) <= least for least, after in zip(shortest, parts[1:], strict=False))
        assert sum(p.targets for p in parts) == batch.targets
        assert sorted(np.concatenate([p.ids for p in parts])) == sorted(batch.ids)
        for p in parts:
            assert [int(x) for x in p.position_ids] == [i for n in p.doc_lengths for i in range(n)]
            for length, source, number in zip(p.doc_lengths, p.sources, p.documents, strict=True):
                assert len(sources[source][number]) == length


def test_a_document_that_is_too_long_is_refused_before_training():
    sources = make_sources([5])
    sources[0].append(document(list(range(40)), [1] * 40))
    with pytest.raises(UserError) as caught:
        PackedStream(sources, [1], 0, 32, 4)
    assert caught.value.where == "sources[0], document 5"


def test_weights_and_sizes_are_checked():
    with pytest.raises(UserError):
        PackedStream(make_sources([3, 3]), [1, 0], 0, 32, 4)
    with pytest.raises(UserError):
        PackedStream([[]], [1], 0, 32, 4)
    with pytest.raises(UserError):
        PackedStream(make_sources([3]), [1], 0, 32, 0)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), parts=st.integers(1, 9), capacity=st.integers(60, 120))
def test_divided_batches_hold_every_document_once_and_are_balanced(lengths, parts, capacity):
    documents = [document([10 * i + k for k in range(n)], [int(k % 3 == 1) for k in range(n)]) for i, n in enumerate(lengths)]
    batch = make_batch(documents, list(range(len(lengths))))
    shares = batch.divide(parts)
    assert len(shares) == parts
    assert sorted(s for share in shares if share for s in share.sources) == batch.sources
    assert sum(share.predicted for share in shares if share) == batch.predicted == sum(int(d.mask[1:].sum()) for d in documents)
    tokens = [share.tokens if share else 0 for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths)
    for share in filter(None, shares):
        for part in share.split(capacity):
            at = 0
            for source, n in zip(part.sources, part.doc_lengths, strict=True):
                assert part.ids[at : at + n].tolist() == documents[source].ids.tolist()
                at += n
    idle = batch.idle()
    assert idle.tokens == min(lengths)
    assert idle.targets == 0
