"""Bits by place, and rounding by chance: the same everywhere, fair, and idle where nothing is to be rounded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cairn.train.rounding import Draws, random_bits, round_to_bf16


@given(seed=st.integers(0, 2**64 - 1), start=st.integers(0, 2**33), cut=st.integers(0, 50))
def test_a_shard_draws_the_bits_of_its_place(seed, start, cut):
    whole = random_bits(seed, start, 50)
    assert torch.equal(torch.cat([random_bits(seed, start, cut), random_bits(seed, start + cut, 50 - cut)]), whole)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 + 12345])
def test_bits_are_even_and_independent(seed):
    count = 1 << 16
    bits, later = random_bits(seed, 0, count), random_bits(seed + 1, 0, count)
    for shift in range(32):
        one, other = (bits >> shift) & 1, (later >> shift) & 1
        assert abs(one.float().mean() - 0.5) < 0.01  # five standard deviations
        assert abs((one ^ other).float().mean() - 0.5) < 0.01
        assert abs((one[1:] ^ one[:-1]).float().mean() - 0.5) < 0.01
    low = (bits & 0xFF).bincount(minlength=256).float()
    assert ((low - 256) ** 2 / 256).sum() < 400  # chi squared, 255 degrees of freedom: 6 standard deviations


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(0, 2**64 - 1))
def test_a_value_becomes_one_of_its_two_neighbours(value, seed):
    x = torch.full((64,), value)
    found = set(round_to_bf16(x, seed).tolist())
    down = torch.tensor([value]).view(torch.int32).bitwise_and_(-0x10000).view(torch.float32)
    up = (down.view(torch.int32) + 0x10000).view(torch.float32)
    assert found <= {float(down), float(up)}
    if float(down) == value:
        assert found == {value}


def test_the_mean_is_the_value():
    x = torch.full((200_000,), 1.0 + 2.0**-7 * 0.3)
    assert float(round_to_bf16(x, 5).float().mean() - 1.0) == pytest.approx(2.0**-7 * 0.3, rel=0.03)
    assert torch.equal(round_to_bf16(x, 5), round_to_bf16(x, 5))
    part = round_to_bf16(x[70_000:], 5, start=70_000)
    assert torch.equal(part, round_to_bf16(x, 5)[70_000:])


def test_infinities_and_nan_stay():
    x = torch.tensor([float("inf"), float("-inf"), float("nan")])
    found = round_to_bf16(x, 1)
    assert found[:2].tolist() == x[:2].tolist()
    assert found[2].isnan()


def test_seeds_differ_by_step_weight_and_purpose():
    a, b = torch.zeros(1), torch.zeros(1)
    found = set()
    for root in (1, 2):
        draws = Draws(root, {"a": a, "b": b})
        for draws.step in range(3):
            found |= {draws.seed(p, what) for p in (a, b) for what in ("weight", "momentum")}
    assert len(found) == 24
