"""Weights as decoder.cpp reads them: panels of 32 rows, in fp32, bf16, int8 or int4. Knows tensors; no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 32
"""Inputs that share one scale in int4."""


@dataclass(frozen=True)
class Packed:
    """One matrix.

    Attributes:
        weight: its panels; the layouts stand in decoder.cpp.
        scale: one a row for int8; k/32 × rows for int4.
        bias: one a row, or None.
        rows: padded to 32.
        k: inputs, padded to 32.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    rows: int
    k: int

    @property
    def tensors(self) -> list[Tensor]:
        """Those that are there."""
        return [x for x in (self.weight, self.scale, self.bias) if x is not None]


def up(n: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-n // to) * to


def padded(w_NK: Tensor, rows: int, k: int) -> Tensor:
    """The matrix with zeros below and to the right."""
    return F.pad(w_NK, (0, k - w_NK.shape[1], 0, rows - w_NK.shape[0]))


def linear(weights: Sequence[Tensor], biases: Sequence[Tensor | None], kind: str, *, gated: bool = False) -> Packed:
    """Matrices of the same inputs as one.

    Args:
        weights: N × K each.
        biases: one each, or None.
        kind: float32, bfloat16, int8, int4.
        gated: two matrices, laid out so that sixteen rows of the first and the same rows of the second share a panel.
    """
    k = up(weights[0].shape[1], 32)
    bias = [torch.zeros(len(w)) if b is None else b.detach().float() for w, b in zip(weights, biases, strict=True)]
    columns = [b[:, None] for b in bias]
    if gated:
        inner = up(len(weights[0]), 32)
        w_NK, b_N1 = (
            torch.stack([padded(x, inner, width).view(inner // 16, 16, width) for x in both], 1).reshape(2 * inner, width)
            for both, width in (([w.detach() for w in weights], k), (columns, 1))
        )
    else:
        rows = up(sum(map(len, weights)), 32)
        w_NK, b_N1 = padded(torch.cat([w.detach() for w in weights]), rows, k), padded(torch.cat(columns), rows, 1)
    whole_bias = b_N1[:, 0].contiguous() if any(b is not None for b in biases) else None
    weight, scale = _LAYOUTS[kind](w_NK)
    return Packed(weight, scale, whole_bias, len(w_NK), k)


def _float32(w_NK: Tensor) -> tuple[Tensor, None]:
    N, K = w_NK.shape
    return w_NK.float().view(N // 32, 32, K).transpose(1, 2).contiguous(), None


def _bfloat16(w_NK: Tensor) -> tuple[Tensor, None]:
    N, K = w_NK.shape
    return w_NK.bfloat16().view(N // 32, 32, K // 2, 2).permute(0, 2, 1, 3).contiguous(), None


def int8_codes(w_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes -127 to 127 and a scale a row: weight = code · scale."""
    w = w_NK.float()
    scale_N = w.abs().amax(1) / 127
    codes_NK = (w / scale_N.clamp(min=1e-30)[:, None]).round().to(torch.int8)
    return codes_NK, scale_N


def _int8(w_NK: Tensor) -> tuple[Tensor, Tensor]:
    N, K = w_NK.shape
    codes_NK, scale_N = int8_codes(w_NK)
    return codes_NK.view(N // 32, 2, 16, K // 2, 2).permute(0, 3, 1, 4, 2).contiguous(), scale_N


def int4_codes(w_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes -8 to 7 and a scale (N × K/32) a group of 32 inputs: of a few scales, the one of least squared error."""
    N, K = w_NK.shape
    w = w_NK.float().view(N, K // GROUP, GROUP)
    peak = w.gather(2, w.abs().argmax(2, keepdim=True))
    best, codes, scale = torch.full_like(peak, torch.inf), torch.zeros_like(w), torch.ones_like(peak)
    for share in (8.0, 7.5, 7.0, 8.5, 9.0, 9.5):
        # The extreme value, whatever its sign, falls on the side that has one code more.
        one = -peak / share
        tried = (w / torch.where(one == 0, 1.0, one)).round().clamp(-8, 7)
        error = (tried * one - w).square().sum(2, keepdim=True)
        better = error < best
        best, scale, codes = torch.where(better, error, best), torch.where(better, one, scale), torch.where(better, tried, codes)
    return codes.view(N, K).to(torch.int8), scale[:, :, 0]


def _int4(w_NK: Tensor) -> tuple[Tensor, Tensor]:
    N, K = w_NK.shape
    codes_NK, scale_NG = int4_codes(w_NK)
    nibbles = (codes_NK.to(torch.int64) + 8).view(N // 32, 32, K // 8, 4, 2)
    shifts = torch.tensor([[4 * p, 4 * p + 16] for p in range(4)])
    words = (nibbles << shifts).sum((3, 4))
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return words.transpose(1, 2).contiguous(), scale_NG.t().contiguous()


_LAYOUTS = {"float32": _float32, "bfloat16": _bfloat16, "int8": _int8, "int4": _int4}
