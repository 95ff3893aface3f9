"""The output head, and log-probabilities at chosen positions without ever holding positions × vocabulary. Knows no objective.

Logits live for one chunk of positions; the gradient of the chunk is computed at once and only the sums remain (the idea of cut
cross-entropy, Wijmans et al. 2024, in plain torch). Beyond the head's weight and its gradient, memory does not depend on the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.model.cost import LOGITS
from cairn.model.kernels import add_to
from cairn.model.native import products
from cairn.model.native import train as native

CACHED = 1 << 22
"""Logits that are made and passed over at once, as many as a processor's cache holds: four times as many took twice as long."""
FEWEST = 128
"""Positions that are made at once at least: a product of fewer costs as much as reading the head's weight."""
ROWS = 8192
"""Rows of the head's weight whose gradient is added at once."""


LossOf = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""(logits (n, V) in fp32 of some positions, which ones of N) → (their losses (n), F figures of each that are only told (n, F))."""


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: `softcap(scale · (h Wᵀ + b))`."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def plain(self) -> bool:
        """Whether logits are a product and no more."""
        return self.bias_V is None and self.scale == 1.0 and self.softcap is None

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


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum of −log p(target) over positions, and each position's; the sum's gradient is computed in the forward, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, head: Head, z_loss: float,
        counts_N: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        total = torch.zeros((), dtype=torch.float32, device=h_ND.device)
        nll_N = torch.empty(len(targets_N), dtype=torch.float32, device=h_ND.device)
        own = head.plain and native.serves(h_ND, weight_VD, weight_VD.t())
        grads = _Gradients(h_ND, weight_VD, bias_V, own=own)
        # Our own kernel goes over the logits row by row: of a chunk no parts must stay in the cache.
        for whole, parts in _chunks(len(targets_N), weight_VD.shape[0], len(targets_N) if own else FEWEST):
            for part in parts:
                if own:
                    p = _product(h_ND[part], weight_VD, grads.place(whole, part))
                    counts = None if counts_N is None else counts_N[part]
                    nll_N[part], lse = native.cross_entropy_gradient(p, targets_N[part], counts, z_loss)
                    terms = nll_N[part] + z_loss * lse.square() if z_loss else nll_N[part]
                    total += (terms if counts is None else terms * counts).sum()
                    grads.add(whole, part, p, None, head)
                    continue
                z, slope = _chunk_logits(h_ND[part], head)
                # Probabilities in the logits' own type: passes over fp32 logits cost more time than the products (docs/experiments.md).
                p = torch.softmax(z, -1)
                lse = _log_sum(z, p)
                nll_N[part] = lse - z.gather(1, targets_N[part, None])[:, 0].float()
                terms = nll_N[part]
                if z_loss:
                    terms = terms + z_loss * lse.square()
                    p *= (1.0 + 2.0 * z_loss * lse)[:, None]
                p[torch.arange(len(lse), device=p.device), targets_N[part]] -= 1.0
                if counts_N is not None:
                    terms = terms * counts_N[part]
                    p *= counts_N[part, None]
                total += terms.sum()
                grads.add(whole, part, p, slope, head)
            grads.end(whole)
        ctx.gradients = (grads.dh, grads.dw, grads.db)
        ctx.dtypes = (weight_VD.dtype, bias_V.dtype if bias_V is not None else None)
        ctx.mark_non_differentiable(nll_N)
        return total, nll_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_scaled_once(ctx, grads[0]), None, None, None, None


class _Summed(torch.autograd.Function):
    """Sum of any losses of the logits at each position; the sum's gradient is computed in the forward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, head: Head, loss_of: LossOf) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), dtype=torch.float32, device=h_ND.device)
        told: list[Tensor] = []
        grads = _Gradients(h_ND, weight_VD, bias_V)
        for whole, parts in _chunks(len(h_ND), weight_VD.shape[0]):
            for part in parts:
                z, slope = _chunk_logits(h_ND[part], head)
                with torch.enable_grad():
                    z = z.detach().float().requires_grad_()
                    loss_n, told_nF = loss_of(z, part)
                    (g,) = torch.autograd.grad(loss_n.sum(), z)
                total += loss_n.detach().sum()
                told.append(told_nF.detach())
                grads.add(whole, part, g, slope, head)
            grads.end(whole)
        ctx.gradients = (grads.dh, grads.dw, grads.db)
        ctx.dtypes = (weight_VD.dtype, bias_V.dtype if bias_V is not None else None)
        told_NF = torch.cat(told) if told else h_ND.new_zeros(0, 0)
        ctx.mark_non_differentiable(told_NF)
        return total, told_NF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_scaled_once(ctx, grads[0]), None, None


def _scaled_once(ctx: Any, up: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of hidden states, weight and bias that a forward has kept, times what comes in."""
    if ctx.gradients is None:
        raise RuntimeError("the sum's gradient was already taken; it is computed once and not kept")
    (dh, dw, db), ctx.gradients = ctx.gradients, None
    assert up is not None
    weight_dtype, bias_dtype = ctx.dtypes
    # In place: a copy of vocabulary × width would be most of what the loss needs.
    return (
        dh.mul_(up), None if dw is None else dw.mul_(up).to(weight_dtype),
        None if db is None else db.mul_(up).to(bias_dtype),
    )  # fmt: skip


class _LogProbabilities(torch.autograd.Function):
    """log p(target) at each position, with any gradient coming in: the backward computes each chunk's logits again."""

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, head: Head) -> Tensor:
        logp_N = torch.empty(len(targets_N), dtype=torch.float32, device=h_ND.device)
        lse_N = torch.empty_like(logp_N)
        for part in (part for _, parts in _chunks(len(targets_N), weight_VD.shape[0]) for part in parts):
            z = _chunk_logits(h_ND[part], head)[0].float()
            lse_N[part] = torch.logsumexp(z, -1)
            logp_N[part] = z.gather(1, targets_N[part, None])[:, 0] - lse_N[part]
        ctx.save_for_backward(h_ND, weight_VD, bias_V, targets_N, lse_N)
        ctx.head = (head.scale, head.softcap)
        return logp_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_ND, weight_VD, bias_V, targets_N, lse_N = ctx.saved_tensors
        head = Head(weight_VD, bias_V, *ctx.head)
        sums = _Gradients(h_ND, weight_VD, bias_V)
        for whole, parts in _chunks(len(targets_N), weight_VD.shape[0]):
            for part in parts:
                z, slope = _chunk_logits(h_ND[part], head)
                g = z.float().sub_(lse_N[part, None]).exp_().neg_()
                g[torch.arange(len(g), device=g.device), targets_N[part]] += 1.0
                sums.add(whole, part, g.mul_(grads[0][part, None]), slope, head)
            sums.end(whole)
        dw, db = sums.dw, sums.db
        return (
            sums.dh, None if dw is None else dw.to(weight_VD.dtype), None if db is None or bias_V is None else db.to(bias_V.dtype),
            None, None,
        )  # fmt: skip


class _Gradients:
    """The gradients of hidden states, weight and bias, summed over chunks."""

    def __init__(self, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, *, own: bool = False) -> None:
        self.h, self.weight, self.own = h_ND, weight_VD, own
        self.dh = torch.empty_like(h_ND)
        # fp32 sums: adding chunks in bf16 would round each of them away.
        # The first chunk writes them all; without one they are zero.
        make = torch.empty if len(h_ND) else torch.zeros
        self.dw = make(weight_VD.shape, dtype=torch.float32, device=h_ND.device) if weight_VD.requires_grad else None
        self.db = torch.zeros(weight_VD.shape[0], dtype=torch.float32, device=h_ND.device) if bias_V is not None else None
        self.held: Tensor | None = None
        """The logits' gradients of a whole chunk, in the hidden states' type: adding to the weight's costs a pass over all of it."""

    def place(self, whole: slice, part: slice) -> Tensor:
        """Where the gradient of a part's logits is held until the chunk `whole` ends: what is made there is not copied."""
        if self.held is None:
            self.held = self.h.new_empty(whole.stop - whole.start, self.weight.shape[0])
        return self.held[part.start - whole.start : part.stop - whole.start]

    def add(self, whole: slice, part: slice, g: Tensor, slope: Tensor | None, head: Head) -> None:
        """Add a part of the chunk `whole`; `g` is the gradient of its logits and is overwritten."""
        if slope is not None:
            g.mul_(slope)
        if head.scale != 1.0:
            g.mul_(head.scale)
        low = g.to(self.h.dtype)
        self.dh[part] = products.input_gradient(low, self.weight) if self._takes(low) else low @ self.weight
        if self.db is not None:
            self.db += g.sum(0)
        if self.dw is not None:
            place = self.place(whole, part)
            if place.data_ptr() != low.data_ptr():
                place.copy_(low)

    def _takes(self, rows: Tensor) -> bool:
        return self.own and products.takes(len(rows), self.weight)

    def end(self, whole: slice) -> None:
        """All parts of the chunk were added."""
        if self.dw is None or self.held is None:
            return
        held, h = self.held[: whole.stop - whole.start], self.h[whole]
        # Rows by the thousand: a product of the whole weight's size would be fetched from the system, and cleared, for each chunk.
        for rows in (slice(at, at + ROWS) for at in range(0, len(self.dw), ROWS)):
            part = products.weight_gradient(held[:, rows], h) if self._takes(h) else held[:, rows].t() @ h
            if whole.start == 0:
                self.dw[rows] = part
            else:
                add_to(self.dw[rows], part)


def _product(h_ND: Tensor, weight_VD: Tensor, out: Tensor) -> Tensor:
    """Logits in `out`, by our own kernel where it takes them."""
    if products.takes(len(h_ND), weight_VD):
        return products.forward(h_ND, weight_VD, out)
    return torch.mm(h_ND, weight_VD.t(), out=out)


def _chunks(positions: int, vocabulary: int, fewest: int = FEWEST) -> Iterator[tuple[slice, list[slice]]]:
    """Slices of positions whose logits stay within LOGITS, so that memory does not grow with the vocabulary, each in its parts."""
    size = max(1, LOGITS // vocabulary)
    step = min(size, max(fewest, CACHED // vocabulary))
    for start in range(0, positions, size):
        stop = min(start + size, positions)
        yield slice(start, stop), [slice(at, min(at + step, stop)) for at in range(start, stop, step)]


def _chunk_logits(h: Tensor, head: Head) -> tuple[Tensor, Tensor | None]:
    """Logits of a chunk, in fp32 where they are scaled or capped, and the slope of the soft cap there (None where there is none)."""
    z = torch.nn.functional.linear(h, head.weight_VD, head.bias_V)
    if head.scale != 1.0:
        z = z.float().mul_(head.scale)
    if head.softcap is None:
        return z, None
    squashed = z.float().div_(head.softcap).tanh_()
    slope = 1.0 - squashed * squashed
    return squashed.mul_(head.softcap), slope


def _log_sum(z: Tensor, p: Tensor) -> Tensor:
    """log Σ exp(z) in fp32, out of the largest logit and its probability: no further pass of exponentials."""
    return z.amax(-1).float() - p.amax(-1).float().log()


def cross_entropy(
    h_ND: Tensor, targets_N: Tensor, head: Head, z_loss: float = 0.0, counts_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Σ −log p(target) over N positions, with its gradient, and each position's, without.

    Args:
        h_ND: hidden states at the positions whose next token is a target.
        targets_N: the ids of those next tokens.
        head: the output head.
        z_loss: adds this much of Σ log²Z to the sum, which keeps logits from drifting (PaLM, Chowdhery et al. 2022).
        counts_N: how much each position counts in the sum, fp32; None: 1.

    Returns:
        The sum, in nats, fp32 (z-loss included); and −log p(target) of each position, fp32, detached.
    """
    return _SummedCrossEntropy.apply(h_ND, head.weight_VD, head.bias_V, targets_N, head, z_loss, counts_N)


def log_probabilities(h_ND: Tensor, targets_N: Tensor, head: Head) -> Tensor:
    """log p(target) at N positions, in nats, fp32, differentiable whatever is made of them (preferences, rewards).

    It costs one more product with the head than `cross_entropy`, whose gradient is known to be a sum's.
    """
    return _LogProbabilities.apply(h_ND, head.weight_VD, head.bias_V, targets_N, head)


def summed(h_ND: Tensor, head: Head, loss_of: LossOf) -> tuple[Tensor, Tensor]:
    """Σ of a loss over N positions, with its gradient, for losses that need more of the logits than a target's probability.

    Args:
        h_ND: hidden states.
        head: the output head.
        loss_of: gives the losses of a chunk of positions; its own operations make the gradient, so nothing in it may work in place on
            the logits.

    Returns:
        The sum, fp32; and the figures that `loss_of` tells of each position, detached.
    """
    return _Summed.apply(h_ND, head.weight_VD, head.bias_V, head, loss_of)


def chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    """Slices of positions whose logits may be held at once, for whoever makes logits without a gradient."""
    return (part for _, parts in _chunks(positions, vocabulary) for part in parts)
