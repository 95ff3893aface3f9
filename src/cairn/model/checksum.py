"""A number that says whether two sets of weights hold the same values, however they are laid out. Knows tensors; no model.

It is a sum over values, so that panels, joined matrices and padding with zeros do not change it. For accidents, not for enemies: what
is published has SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

PIECE = 1 << 22
"""Values that are taken in at once."""
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
"""SplitMix64's increment, as a signed number."""


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> int:
    """A 64-bit number out of all values; zeros count for nothing, and the type a value is kept in neither.

    Args:
        tensors: of any shapes and float types of at most 32 bits, wherever they lie.
    """
    total = 0
    for tensor in tensors:
        for piece in tensor.detach().reshape(-1).split(PIECE):
            # + 0.0 makes one zero of both: padding knows no sign.
            bits = (piece.float() + 0.0).view(torch.int32).to(torch.int64)
            # Multiplied, folded and multiplied again: a plain sum would not see that two values gave each other what they lost.
            mixed = bits * _ODD
            mixed = (mixed ^ (mixed >> 29)) * _ODD
            total += int(mixed.sum())
    return total & 0xFFFFFFFFFFFFFFFF
