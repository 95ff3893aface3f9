"""Who is lost, who is only busy, and which reason counts. The clock runs faster here."""

from __future__ import annotations

import time

import pytest
from torch.distributed import HashStore

from cairn.errors import Lost, UserError
from cairn.train import pulse
from cairn.train.pulse import Pulse, Reason


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    for name, seconds in {"BEAT": 0.02, "STALE": 0.3, "STALL": 0.2, "FIRST": 0.6, "GRACE": 60.0}.items():
        monkeypatch.setattr(pulse, name, seconds)


@pytest.fixture
def group():
    """group(world) → the pulses of that many ranks over one store; closed at the end."""
    made = []

    def make(world, only=None):
        store = HashStore()
        made.extend(Pulse(store, rank, world) for rank in (range(world) if only is None else only))
        return made

    yield make
    for one in made:
        one.close()


def reason_of(one, seconds=3.0):
    one._known.wait(seconds)
    return one.reason


def test_ranks_that_beat_stay(group):
    time.sleep(0.5 if (ranks := group(3)) else 0)
    assert [r.reason for r in ranks] == [None] * 3


def test_a_rank_that_falls_silent_is_lost_for_all(group):
    ranks = group(3)
    time.sleep(0.1)
    ranks[2]._closed.set()
    assert reason_of(ranks[0]).rank == 2
    assert "nothing was heard" in reason_of(ranks[1]).what


def test_a_rank_that_never_comes_is_given_longer(group):
    (first,) = group(2, only=[0])
    time.sleep(0.4)
    assert first.reason is None
    assert reason_of(first).rank == 1


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_does_not_come_to_the_exchange_is_lost_unless_it_is_busy(group, busy, late):
    ranks = group(2)
    for one in ranks:
        one.steps = 2
    on_time = ranks[1 - late]
    if busy:
        ranks[late]._busy = 1
        time.sleep(0.1)
    on_time.mark()
    if busy:
        time.sleep(0.5)
        assert on_time.reason is None
    else:
        assert reason_of(on_time).rank == late
        assert "hangs" in on_time.reason.what


def test_the_first_reason_counts_and_keeps_its_status(group):
    ranks = group(2)
    told = ranks[1].fail(UserError("bad row", where="row 7", remedy="mend it"))
    assert ranks[0].tell(Reason(0, "later")) == told
    error = told.error()
    assert (error.what, error.where, error.remedy, error.status) == ("rank 1: bad row", "row 7", "mend it", 2)
    lost = Reason.of(1, RuntimeError("boom")).error()
    assert isinstance(lost, Lost)
    assert lost.status == 1
    assert "same command" in lost.remedy
