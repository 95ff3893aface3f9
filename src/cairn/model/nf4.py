"""Frozen matrices in 4 bits, for training adapters on them. Knows linear layers; no adapter.

NormalFloat 4 of QLoRA (Dettmers et al. 2023): blocks of 64 weights share their largest magnitude, and each weight is one of 16 quantiles
of a normal distribution. A matrix is written out in full for each use, forward and backward, and forgotten again; this takes a
twentieth of the product's time at 2,000 tokens (docs/experiments.md). Plain torch throughout, so it works on whatever device torch does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64
"""Weights that share a scale. 4 + 16 / 64 bits a weight."""
CODES = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
"""Quantiles of the normal distribution, scaled to [-1, 1], with an exact 0 (the paper's appendix E)."""


class NF4Linear(nn.Linear):
    """A linear layer whose frozen weight is held in 4 bits. Its `weight` is a fresh tensor in fp32 at each look.

    The values are bf16 numbers whatever the type of the inputs, so the layer is one function in every precision but for rounding.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes, scales = quantise(linear.weight.detach())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.written_out().float()

    def written_out(self) -> Tensor:
        """The weight (out, in) in bf16."""
        return dequantise(self.codes, self.scales, (self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self, self.bias)

    def plain(self) -> nn.Linear:
        """The same layer with its weight written out in fp32."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.weight, requires_grad=False)
        layer.bias = self.bias
        return layer


class _Product(torch.autograd.Function):
    """x Wᵀ + b. Keeps no weight between forward and backward: that would be the whole matrix again, in 16 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.written_out().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.layer.written_out().to(grads[0].dtype), None, None


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, scales) of a tensor: two codes a byte, and one bf16 scale a block of the flattened tensor."""
    flat = weight.float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1).bfloat16()
    codes = torch.tensor(CODES, device=flat.device)
    nearest = torch.bucketize(blocks / scales.float().clamp_min(1e-30)[:, None], (codes[1:] + codes[:-1]) / 2).to(torch.uint8)
    pairs = nearest.view(-1, 2)
    return pairs[:, 0] | (pairs[:, 1] << 4), scales


def dequantise(codes: Tensor, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor of `shape` in bf16."""
    # One look-up gives both weights of a byte: taking bytes apart by shifts took five times as long.
    pairs = _pairs(codes.device).index_select(0, codes.int())
    blocks = pairs.view(torch.bfloat16).view(-1, BLOCK) * scales[:, None]
    count = 1
    for size in shape:
        count *= size
    return blocks.view(-1)[:count].view(shape)


def _pairs(device: torch.device) -> Tensor:
    """For each byte its two weights in bf16, together one int32."""
    if device not in _PAIRS:
        byte, codes = torch.arange(256), torch.tensor(CODES, dtype=torch.bfloat16)
        _PAIRS[device] = torch.stack([codes[byte & 15], codes[byte >> 4]], 1).contiguous().view(torch.int32).view(-1).to(device)
    return _PAIRS[device]


_PAIRS: dict[torch.device, Tensor] = {}


def quantise_linears(body: nn.Module) -> tuple[int, int]:
    """Put every linear layer of `body` into 4 bits: (weights that are now in 4 bits, parameters that are left)."""
    rounded = 0
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                rounded += child.weight.numel()
                setattr(parent, name, NF4Linear(child))
    return rounded, sum(p.numel() for p in body.parameters())


def count_weights(model: nn.Module) -> int:
    """Parameters of `model`, those in 4 bits included."""
    rounded = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, NF4Linear))
    return rounded + sum(p.numel() for p in model.parameters())


def write_out_linears(model: nn.Module) -> None:
    """Undo `quantise_linears` but for the rounding: every layer gets its weight in fp32."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NF4Linear):
                setattr(parent, name, child.plain())
