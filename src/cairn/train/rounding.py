"""Random bits that are a function of a seed and a place, and rounding to bf16 by chance with them. Knows tensors; no optimiser.

A torch generator would draw other bits on another device, and other ones for a shard than for the whole tensor. These are a hash
of (seed, index of the element), so they are the same everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cairn.ledger import seeds

_CHUNK = 1 << 16
"""Elements at a time on a CPU: what is held on the way stays small beside a large matrix, and in the cache."""


class Draws:
    """Seeds for the roundings of one step, by tensor.

    Args:
        root: the run's seed.
        named: the weights, in the model's order.
    """

    def __init__(self, root: int, named: dict[str, Tensor]) -> None:
        self.root, self.step = root, 0
        self._index = {id(p): i for i, p in enumerate(named.values())}

    def seed(self, weight: Tensor, what: str) -> int:
        """The seed for rounding `what` of this weight at the present step."""
        return seeds.seed(self.root, f"rounding/{what}/{self._index[id(weight)]}", self.step)


def random_bits(seed: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """32 random bits (int32) for each of the elements `start` to `start + count`.

    Two rounds of an integer hash whose constants are those of Wellons' low-bias search (2018); both halves of the seed enter.
    """
    low, high = _signed(seed), _signed(seed >> 32)
    x = torch.arange(count, dtype=torch.int32, device=device).add_(_signed(start))
    for key in (low, high):
        x.add_(key)
        # An int32 is shifted with its sign; the mask makes it the plain shift that the hash is made of.
        x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
        x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(_signed(0x846CA68B))
        x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    return x


def round_to_bf16(x: Tensor, seed: int, start: int = 0) -> Tensor:
    """fp32 to bf16, up or down by chance so that the mean is the value; what bf16 holds exactly stays.

    Args:
        x: contiguous fp32 values.
        seed: of the bits.
        start: the index of x's first element in the whole tensor, where x is a shard.
    """
    out = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    flat, rounded = x.reshape(-1), out.view(-1)
    step = piece(flat)
    for at in range(0, flat.numel(), step):
        size = min(step, flat.numel() - at)
        raised = random_bits(seed, start + at, size, x.device).bitwise_and_(0xFFFF).add_(flat[at : at + size].view(torch.int32))
        rounded[at : at + size] = raised.bitwise_and_(-0x10000).view(torch.float32)
    return out


def piece(x: Tensor) -> int:
    """How many elements of a tensor are best worked on at a time: on a GPU, all of them."""
    return _CHUNK if x.device.type == "cpu" else max(1, x.numel())


def _signed(value: int) -> int:
    """The low 32 bits, as an int32 has them."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low
