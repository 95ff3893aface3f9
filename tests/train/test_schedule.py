"""Schedules: between 0 and 1, without jumps, and at `final` when the run is over."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cairn.train.config import ScheduleConfig, Training
from cairn.train.schedule import factor

KINDS = ["wsd", "trapezoid", "cosine", "linear", "inverse_sqrt", "constant"]


@st.composite
def schedules(draw):
    """(configuration, steps): lengths as shares or as numbers of steps, down to none and up to the whole run."""
    total, kind = draw(st.integers(1, 400)), draw(st.sampled_from(KINDS))
    values = {"kind": kind, "final": draw(st.floats(0, 1)), "warmup": draw(st.floats(0, 0.5)), "decay": draw(st.floats(0.01, 0.5))}
    if kind == "trapezoid" or draw(st.booleans()):
        values["warmup_steps"] = draw(st.integers(0, total - 1))
        if kind in ("wsd", "trapezoid", "inverse_sqrt"):
            values["decay_steps"] = draw(st.integers(1, total - values["warmup_steps"]))
    return ScheduleConfig(**values), total


@given(schedules())
def test_factors_rise_to_one_fall_without_a_jump_and_end_at_final(schedule):
    config, total = schedule
    warmup, decay = config.lengths(total)
    values = [factor(config, step, total) for step in range(total + 1)]
    assert all(0 <= v <= 1 for v in values)
    assert values[0] > 0
    assert values[:warmup] == sorted(values[:warmup])
    after = values[warmup:]
    assert all(b <= a + 1e-12 for a, b in pairwise(after))
    if config.kind != "constant":
        assert values[-1] == pytest.approx(config.final, abs=1e-12)
    # No step changes the factor by more than a straight line over the shortest phase would; a cosine's steepest slope is pi / 2 of that.
    steepest = 1.6 / max(1, min(warmup + 1, decay or total))
    if config.kind == "inverse_sqrt":
        steepest = max(steepest, 0.5 / (warmup + 1))
    assert all(abs(a - b) <= steepest + 1e-9 for a, b in pairwise(values))


def test_shapes_of_the_schedules():
    wsd = ScheduleConfig(kind="wsd", warmup=0.1, decay=0.5, final=0.0)
    assert factor(wsd, 0, 100) == pytest.approx(1 / 11)
    assert factor(wsd, 30, 100) == 1.0
    assert factor(wsd, 75, 100) == pytest.approx(0.5)
    cosine = ScheduleConfig(kind="cosine", warmup=0.0, final=0.1)
    assert factor(cosine, 50, 100) == pytest.approx(0.55)


def test_two_shares_that_are_rounded_up_do_not_overlap():
    config = ScheduleConfig(kind="wsd", warmup=0.5, decay=0.5)
    assert config.lengths(3) == (2, 1)
    assert config.lengths(1) == (0, 1)


def test_a_trapezoid_is_a_wsd_whose_lengths_are_steps():
    trapezoid = ScheduleConfig(kind="trapezoid", warmup_steps=10, decay_steps=50, final=0.1)
    wsd = ScheduleConfig(kind="wsd", warmup=0.1, decay=0.5, final=0.1)
    assert [factor(trapezoid, s, 100) for s in range(101)] == [factor(wsd, s, 100) for s in range(101)]
    # A longer run repeats the shorter one up to its decay; by shares it would not.
    assert [factor(trapezoid, s, 200) for s in range(50)] == [factor(trapezoid, s, 100) for s in range(50)]
    assert factor(wsd, 15, 200) != factor(wsd, 15, 100)


def test_the_inverse_square_root_goes_by_the_step():
    config = ScheduleConfig(kind="inverse_sqrt", warmup_steps=99, decay_steps=100)
    assert factor(config, 99, 1000) == 1.0
    assert factor(config, 399, 1000) == pytest.approx(0.5)
    assert factor(config, 950, 1000) == pytest.approx(0.5 * (100 / 901) ** 0.5)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"kind": "trapezoid"}, "needs warmup_steps and decay_steps"),
        ({"kind": "cosine", "decay_steps": 5}, "cosine has no decay_steps"),
        ({"kind": "wsd", "warmup": 0.8, "decay": 0.3}, "more than the whole run"),
        ({"kind": "trapezoid", "warmup_steps": 60, "decay_steps": 41}, r"warm-up \(60 steps\) and decay \(41\)"),
        ({"kind": "cosine", "warmup_steps": 101}, "longer than the run"),
    ],
)
def test_phases_that_do_not_fit_are_refused(bad, says):
    with pytest.raises(ValidationError, match=says):
        Training(steps=100, schedule=bad)
