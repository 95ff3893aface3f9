"""Optimiser states in 8 bits, by blocks. Knows tensors; neither weights nor update rules.

Blocks of 128 neighbours in a row share an fp32 scale, their largest magnitude (Dettmers et al. 2022). Instead of a table of codes, the
value's root is coded linearly: codes lie close near zero, where most values are, and square roots are rounded alike on every device.
Rows have blocks of their own, so codes and scales can be sharded by rows and put together again without a change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cairn.train.rounding import piece, random_bits

BLOCK = 128
"""Neighbours that share a scale."""


@dataclass(frozen=True)
class Code:
    """How the values of a state become bytes.

    Attributes:
        signed: whether there are values below zero.
        roots: how often the square root is taken.
    """

    signed: bool
    roots: int

    @property
    def levels(self) -> int:
        return 127 if self.signed else 255


MOMENT = Code(signed=True, roots=1)
"""For averages of gradients: steps of 1/127 of the root, 1.6 % of the value at the block's largest and 16 % at a hundredth of it."""
SQUARES = Code(signed=False, roots=2)
"""For averages of squared gradients, which span twice the decades. No value falls to 0, for updates are divided by its root."""


def is_coded(weight: Tensor) -> bool:
    """Whether the states of this weight may be 8-bit: vectors (norms, biases) cost nothing and stay as they are."""
    return weight.ndim >= 2


def state_bytes(weight: Tensor, coded: bool) -> int:
    """Bytes of one state of this weight."""
    if not (coded and is_coded(weight)):
        return 4 * weight.numel()
    columns = weight.shape[-1]
    return weight.numel() + 4 * weight.numel() // columns * math.ceil(columns / BLOCK)


def encode(x: Tensor, code: Code, seed: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Values to bytes and scales, rounded up or down by chance so that the mean is the value.

    To the nearest, a change of a few per cent a step, which is all that an average ever does, would be lost step after step.

    Args:
        x: fp32 values of at least two dimensions.
        code: how they are coded.
        seed: of the chance.
        start: the index of x's first element in the whole tensor, where x is a shard.

    Returns:
        Codes (int8 or uint8) of x's shape, and scales of shape rows × blocks.
    """
    rows = x.reshape(-1, x.shape[-1])
    codes = torch.empty(rows.shape, dtype=torch.int8 if code.signed else torch.uint8, device=x.device)
    scales = torch.empty(len(rows), math.ceil(rows.shape[1] / BLOCK), dtype=torch.float32, device=x.device)
    # Some rows at a time: half a dozen fp32 copies of a large embedding would take more than its states do.
    height = max(1, piece(rows) // rows.shape[1])
    for at in range(0, len(rows), height):
        some = slice(at, at + height)
        codes[some], scales[some] = _encode_rows(rows[some], code, seed, start + at * rows.shape[1])
    return codes.view(x.shape), scales


def _encode_rows(rows: Tensor, code: Code, seed: int, start: int) -> tuple[Tensor, Tensor]:
    """Codes (still fp32) and scales of a matrix."""
    pad = -rows.shape[1] % BLOCK
    blocks = torch.nn.functional.pad(rows, (0, pad)) if pad else rows
    scales = blocks.view(len(rows), -1, BLOCK).abs().amax(-1)
    y = rows.abs().div_(_spread(scales, rows.shape[1])).nan_to_num_(0.0)  # a block of zeros
    root = y
    for _ in range(code.roots):
        root = root.sqrt()
    low = root.mul_(code.levels).floor_().clamp_(0, code.levels - 1)
    below, above = _power(low / code.levels, code), _power((low + 1) / code.levels, code)
    chance = y.sub_(below).div_(above.sub_(below))
    bits = random_bits(seed, start, rows.numel(), rows.device).view_as(rows).bitwise_and_(0xFFFF)
    low.add_(bits.float().mul_(1 / 65536).lt(chance))
    return low.mul_(rows.sign()) if code.signed else low.clamp_(min=1), scales


def decode(codes: Tensor, scales: Tensor, code: Code) -> Tensor:
    """Bytes and scales back to fp32 values."""
    rows = codes.reshape(-1, codes.shape[-1]).float().div_(code.levels)
    value = _power(rows, code)
    if code.signed:
        value = value.copysign_(rows)
    return value.mul_(_spread(scales, rows.shape[1])).view(codes.shape)


def read(state: dict[str, Tensor], key: str, code: Code, like: Tensor) -> Tensor:
    """The fp32 values of a weight's state: the tensor itself where it is not coded; zeros where there is none yet."""
    if f"{key}_scale" in state:
        return decode(state[key], state[f"{key}_scale"], code)
    return state[key] if key in state else torch.zeros(like.shape, dtype=torch.float32, device=like.device)


def write(state: dict[str, Tensor], key: str, value: Tensor, code: Code | None, seed: int) -> None:
    """Keep the values as they are (no code), or coded."""
    if code is None:
        state[key] = value
    else:
        state[key], state[f"{key}_scale"] = encode(value, code, seed)


def _power(x: Tensor, code: Code) -> Tensor:
    """The inverse of the roots, for magnitudes."""
    for _ in range(code.roots):
        x = x * x
    return x


def _spread(scales: Tensor, columns: int) -> Tensor:
    """Each block's scale at each of its columns."""
    return scales[:, :, None].expand(-1, -1, BLOCK).flatten(1)[:, :columns]
