"""8-bit states: how far a value is off, what they weigh, and that rows can be sharded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cairn.train.blocks import BLOCK, MOMENT, SQUARES, decode, encode, state_bytes


def values(rows, columns, seed=0, decades=4):
    """Normal numbers whose sizes are spread over some decades."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draw) * 10 ** (-decades * torch.rand(rows, columns, generator=draw))


@given(rows=st.integers(1, 5), columns=st.integers(1, 300), seed=st.integers(0, 1000))
def test_a_value_is_off_by_less_than_a_step_of_its_code(rows, columns, seed):
    for code, x in ((MOMENT, values(rows, columns, seed)), (SQUARES, values(rows, columns, seed).square())):
        codes, scales = encode(x, code, seed)
        found = decode(codes, scales, code)
        assert codes.shape == x.shape
        assert scales.shape == (rows, -(-columns // BLOCK))
        power = 2**code.roots
        size = scales.repeat_interleave(BLOCK, 1)[:, :columns]
        off = ((found / size).abs() ** (1 / power) - (x / size).abs() ** (1 / power)).abs()
        assert off.max() <= 1.01 / code.levels
        assert torch.equal(found.sign(), x.sign() * (found != 0))


@pytest.mark.parametrize("code", [MOMENT, SQUARES])
def test_the_mean_of_many_codings_is_the_value(code):
    x = torch.tensor([[1.0, 0.3, 0.01]])
    mean = sum(decode(*encode(x, code, seed), code) for seed in range(4000)) / 4000
    torch.testing.assert_close(mean, x, rtol=0.01, atol=0)


def test_zeros_and_tiny_values():
    assert decode(*encode(torch.zeros(2, 3), MOMENT, 0), MOMENT).tolist() == [[0.0] * 3] * 2
    assert decode(*encode(torch.zeros(2, 3), SQUARES, 0), SQUARES).tolist() == [[0.0] * 3] * 2
    tiny = decode(*encode(torch.tensor([[1.0, 1e-30]]), SQUARES, 0), SQUARES)
    assert tiny[0, 1] > 0, "an update is divided by its root"


def test_rows_are_coded_alike_alone_and_together():
    """More rows than are coded at a time."""
    x = values(700, 200)
    codes, scales = encode(x, MOMENT, 3)
    for at in (0, 100, 500):
        part, part_scales = encode(x[at : at + 200], MOMENT, 3, start=at * 200)
        assert torch.equal(part, codes[at : at + 200])
        assert torch.equal(part_scales, scales[at : at + 200])


def test_what_they_weigh():
    matrix, vector = torch.zeros(64, 192), torch.zeros(192)
    codes, scales = encode(matrix, MOMENT, 0)
    assert codes.nbytes + scales.nbytes == state_bytes(matrix, coded=True)
    assert state_bytes(matrix, coded=True) < 0.3 * state_bytes(matrix, coded=False)
    assert state_bytes(vector, coded=True) == vector.nbytes
