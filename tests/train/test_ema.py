"""The average of the weights: when it begins, when it moves, and what is saved of it."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from cairn.errors import UserError
from cairn.train.config import EmaConfig, Training
from cairn.train.ema import Average


def follow(steps, **settings):
    """The average after each step of a weight that is the step's number."""
    average, found = Average(EmaConfig(**settings)), []
    for step in range(1, steps + 1):
        average.update(step, {"w": torch.tensor([float(step)], dtype=torch.bfloat16)})
        found.append(average.named["w"].item() if average.named else None)
    assert not average.named or average.named["w"].dtype == torch.float32
    return found


def test_it_begins_as_a_copy_and_moves_every_so_many_steps():
    assert follow(3, decay=0.5) == [1.0, 1.5, 2.25]
    assert follow(6, decay=0.5, start=3) == [None, None, 3.0, 3.5, 4.25, 5.125]
    assert follow(6, decay=0.5, every=2) == [None, 2.0, 2.0, 3.0, 3.0, 4.5]
    assert follow(6, decay=0.5, every=2, start=3) == [None, None, 3.0, 3.0, 4.0, 4.0]


def test_it_survives_a_round_trip_beside_other_state():
    average = Average(EmaConfig(decay=0.5))
    average.update(1, {"w": torch.ones(2)})
    again = Average(EmaConfig(decay=0.5))
    again.load(average.state() | {"w/momentum": torch.zeros(2)}, 1)
    assert list(again.named) == ["w"]
    with pytest.raises(UserError, match="no average"):
        again.load({"w/momentum": torch.zeros(2)}, 1)
    again.load({}, 0)


@pytest.mark.parametrize("ema", [{"start": 11}, {"every": 11}])
def test_an_average_that_would_never_begin_is_refused(ema):
    with pytest.raises(ValidationError, match="would begin after step 11, but the run has 10"):
        Training(steps=10, ema=ema)
    Training(steps=11, ema=ema)
