"""The checksum of weights: layout does not count, any value does."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cairn.model.checksum import PIECE, checksum

VALUES = st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=2, max_size=40)


@given(VALUES, st.randoms())
def test_layout_padding_and_type_do_not_count(values, draw):
    tensor = torch.tensor(values, dtype=torch.float32)
    shuffled = list(values)
    draw.shuffle(shuffled)
    cut = len(values) // 2
    parts = [torch.tensor(shuffled[:cut]), torch.tensor([*shuffled[cut:], 0.0, -0.0, 0.0])]
    assert checksum([tensor]) == checksum(parts)
    if torch.equal(tensor.bfloat16().float(), tensor):
        assert checksum([tensor]) == checksum([tensor.bfloat16()])


@given(VALUES, st.integers(0, 39))
def test_one_changed_value_shows(values, place):
    changed = torch.tensor(values, dtype=torch.float32)
    changed[place % len(values)] += 1.0 + abs(changed[place % len(values)])
    assert checksum([torch.tensor(values, dtype=torch.float32)]) != checksum([changed])


def test_what_one_value_gives_another_shows():
    # Of these bits a plain sum is the same.
    one, other = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])
    assert int(one.view(torch.int32).sum()) == int(other.view(torch.int32).sum())
    assert checksum([one]) != checksum([other])


def test_pieces_add_up():
    tensor = torch.arange(PIECE + 5, dtype=torch.float32)
    assert checksum([tensor]) == checksum([tensor[:7], tensor[7:]])
