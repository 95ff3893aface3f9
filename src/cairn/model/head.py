"""The output head, and log-probabilities at chosen positions without ever holding positions × vocabulary. Knows no objective.

Logits live for one chunk of positions; the gradient of the chunk is computed at once and only the sums remain (the idea of cut
cross-entropy, Wijmans et al. 2024, in plain torch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError

CHUNK = 1024
"""Positions whose logits are held at once."""


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: `softcap(scale · (h Wᵀ + b))`."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, h_ND: Tensor) -> Tensor:
        out = torch.nn.functional.linear(h_ND, self.weight_VD, self.bias_V)
        if self.scale != 1.0:
            out = out * self.scale
        return out if self.softcap is None else torch.tanh(out / self.softcap) * self.softcap


def head_of(model: Any) -> Head:
    """The head of a transformers causal LM, with the logit scaling that its family applies."""
    layer, config = model.get_output_embeddings(), model.config
    if layer is None:
        raise UserError(f"the model '{config.model_type}' has no output head", remedy="give a causal language model")
    scale = 1.0
    if getattr(config, "logit_scale", None) is not None:
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None):
        scale = 1.0 / float(config.logits_scaling)
    return Head(layer.weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None))


def head_agrees(model: Any) -> bool:
    """Whether `head_of` gives the logits that the model itself gives: a family may scale them in a way unknown here."""
    vocab = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(6, device=next(model.parameters()).device) * 5 + 1)[None] % vocab
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        ours = head_of(model).logits(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]).float()
    return torch.allclose(own, ours, atol=1e-2 if model.dtype == torch.bfloat16 else 1e-4, rtol=1e-3)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of −log p(target) over positions; its gradient is computed in the forward, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=h_ND.device)
        need_weight = weight_VD.requires_grad
        dh = torch.empty_like(h_ND)
        # fp32 sums: adding chunks in bf16 would round each of them away.
        dw = torch.zeros(weight_VD.shape, dtype=torch.float32, device=h_ND.device) if need_weight else None
        db = torch.zeros(weight_VD.shape[0], dtype=torch.float32, device=h_ND.device) if bias_V is not None else None
        for start in range(0, h_ND.shape[0], CHUNK):
            h, target = h_ND[start : start + CHUNK], targets_N[start : start + CHUNK]
            z = torch.nn.functional.linear(h, weight_VD, bias_V).float()
            if scale != 1.0:
                z = z * scale
            if softcap is not None:
                squashed = torch.tanh(z / softcap)
                z = squashed * softcap
            logp = torch.log_softmax(z, -1)
            total -= logp.gather(1, target[:, None]).sum()
            g = logp.exp_()
            g[torch.arange(len(target), device=g.device), target] -= 1.0
            if softcap is not None:
                g = g * (1.0 - squashed * squashed)
            if scale != 1.0:
                g = g * scale
            g_low = g.to(h.dtype)
            dh[start : start + CHUNK] = g_low @ weight_VD
            if dw is not None:
                dw += g_low.t() @ h
            if db is not None:
                db += g.sum(0)
        ctx.save_for_backward(dh, dw, db)
        ctx.dtypes = (weight_VD.dtype, bias_V.dtype if bias_V is not None else None)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dh, dw, db = ctx.saved_tensors
        up = grads[0]
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            dh * up.to(dh.dtype), None if dw is None else (dw * up).to(weight_dtype), None if db is None else (db * up).to(bias_dtype),
            None, None, None,
        )  # fmt: skip


def cross_entropy_sum(h_ND: Tensor, targets_N: Tensor, head: Head) -> Tensor:
    """Σ −log p(target) over N positions, in nats, fp32.

    Args:
        h_ND: hidden states at the positions whose next token is a target.
        targets_N: the ids of those next tokens.
        head: the output head.
    """
    return _ChunkedCrossEntropy.apply(h_ND, head.weight_VD, head.bias_V, targets_N, head.scale, head.softcap)
