"""Training forms of the parts that most families share: RMS norms, gated feed-forward blocks, attention with rotary positions.

They keep the family's weights and names, and compute the same with fewer passes over memory: gradients in closed form, q/k/v and
gate/up as one product each. A part is replaced where its structure is known, and the replacement stays only if the model then
gives what it gave before (`fuse` measures that), so nothing is chosen by a model's name. Knows modules and packed attention; no optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from cairn.model import kernels
from cairn.model.native import products
from cairn.model.native import train as native

TOLERANCE = 1e-4
"""Largest difference of hidden states in fp32, relative to their largest value, that rounding explains."""


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y, scale = kernels.rms_norm(rows, weight, eps)
        ctx.save_for_backward(rows, weight, scale)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight, scale = ctx.saved_tensors
        dx, dw = kernels.rms_norm_backward(grads[0].reshape(rows.shape), rows, weight, scale)
        return dx.view(grads[0].shape), dw.to(weight.dtype), None


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return kernels.gated_silu(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return kernels.gated_silu_backward(grads[0], ctx.saved_tensors[0])


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return kernels.rotate(x_THD, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return kernels.rotate_back(grads[0], *ctx.saved_tensors), None, None


class _Linear(torch.autograd.Function):
    """x times one matrix, or several that lie one after the other in memory: one product forward, two backward.

    torch's own backward gives a weight's gradient transposed, and laying it out anew took a quarter of a step at 135 M parameters.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, *weights: Tensor) -> Tensor:
        whole = weights[0].detach() if len(weights) == 1 else _joined(weights)
        # Only what the gradients need: a frozen weight's input would be kept in vain.
        ctx.save_for_backward(x if any(ctx.needs_input_grad[2:]) else None, whole)
        ctx.rows = [w.shape[0] for w in weights]
        ctx.own = bias is None and native.serves(x, whole) and products.takes(x.numel() // x.shape[-1], whole)
        if ctx.own:
            return products.forward(x.reshape(-1, x.shape[-1]), whole).view(*x.shape[:-1], -1)
        return nn.functional.linear(x, whole, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, whole = ctx.saved_tensors
        g = grads[0]
        rows = g.reshape(-1, g.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = products.input_gradient(rows, whole).view(*g.shape[:-1], -1) if ctx.own else g @ whole
        db = rows.sum(0) if ctx.needs_input_grad[1] else None
        if x is None:
            return (dx, db, *(None for _ in ctx.rows))
        x = x.reshape(-1, x.shape[-1])
        dw = products.weight_gradient(rows, x) if ctx.own else rows.t() @ x
        return (dx, db, *dw.split(ctx.rows))


def _neighbours(weights: Sequence[Tensor]) -> bool:
    """Whether these matrices follow each other in one piece of memory."""
    first = weights[0]
    at = first.data_ptr()
    for w in weights:
        if not w.is_contiguous() or w.data_ptr() != at or w.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return False
        at += w.numel() * w.element_size()
    return True


def _joined(weights: Sequence[Tensor]) -> Tensor:
    rows, columns = sum(w.shape[0] for w in weights), weights[0].shape[1]
    return weights[0].detach().as_strided((rows, columns), (columns, 1))


def joined_linear(x: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """The layers' outputs side by side; as one product where their weights are neighbours (see `join_weights`)."""
    weights = [layer.weight for layer in layers]
    if _neighbours(weights):
        return _Linear.apply(x, None, *weights)
    return torch.cat([layer(x) for layer in layers], -1)


# -- parts ----------------------------------------------------------------------------------------------------------


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return _RmsNorm.apply(hidden_states, self.weight, _eps(self))


def _eps(module: Any) -> float | None:
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def _linear_forward(self: Any, input: Tensor) -> Tensor:
    return _Linear.apply(input, self.bias, self.weight)


def _feed_forward(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(_GatedSilu.apply(joined_linear(x, [self.gate_proj, self.up_proj])))


def _attention_forward(self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
    packing = kwargs.get("packing")
    if packing is None or position_embeddings is None:
        return type(self).forward(self, hidden_states, position_embeddings=position_embeddings, attention_mask=attention_mask, **kwargs)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    D, T = self.head_dim, hidden_states.shape[1]
    # A layer of its own window says so; other families have one for all in their configuration.
    window = self.sliding_window if hasattr(self, "sliding_window") else getattr(self.config, "sliding_window", None)
    layers = [self.q_proj, self.k_proj, self.v_proj]
    qkv = joined_linear(hidden_states[0], layers)
    q, k, v = (x.view(T, -1, D) for x in qkv.split([layer.weight.shape[0] for layer in layers], -1))
    normed = hasattr(self, "q_norm")
    if not packing.answers and packing.cases is None and attention_mask is None and native.attends(q, v):
        angles = tuple(x[0].to(q.dtype) for x in position_embeddings)
        if normed:
            out = native.attention(self.q_norm(q), self.k_norm(k), v, packing.borders_D, self.scaling, window, angles)
        else:
            out = native.joined_attention(qkv, q.shape[1], k.shape[1], packing.borders_D, self.scaling, window, angles)
        return self.o_proj(out.view(1, T, -1)), None
    if normed:
        q, k = self.q_norm(q), self.k_norm(k)
    cos, sin = (x[0].to(q.dtype) for x in position_embeddings)
    q, k = _Rotate.apply(q, cos, sin), _Rotate.apply(k, cos, sin)
    attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    heads = (x.transpose(0, 1)[None] for x in (q, k, v))
    out, _ = attend(self, *heads, attention_mask, dropout=0.0, scaling=self.scaling, packing=packing, sliding_window=window)
    return self.o_proj(out.reshape(1, T, -1)), None


def _is_norm(module: nn.Module) -> bool:
    parameters = dict(module.named_parameters())
    return list(parameters) == ["weight"] and not list(module.children()) and parameters["weight"].ndim == 1 and _eps(module) is not None


def _plain(module: nn.Module, names: Sequence[str]) -> bool:
    """Whether these are ordinary linear layers without a bias; an adapter's or a quantised layer is not."""
    found = [getattr(module, name, None) for name in names]
    return all(type(layer) is nn.Linear and layer.bias is None for layer in found)


def _is_feed_forward(module: nn.Module) -> bool:
    return {n for n, _ in module.named_children()} == {"gate_proj", "up_proj", "down_proj", "act_fn"} and _plain(
        module, ("gate_proj", "up_proj", "down_proj")
    )


def _is_attention(module: nn.Module) -> bool:
    children = {n for n, _ in module.named_children()}
    if children - {"q_norm", "k_norm"} != {"q_proj", "k_proj", "v_proj", "o_proj"} or getattr(module, "attention_dropout", None):
        return False
    return hasattr(module, "scaling") and hasattr(module, "head_dim") and _plain(module, ("q_proj", "k_proj", "v_proj"))


PARTS: dict[str, tuple[Callable[[nn.Module], bool], Callable[..., Any]]] = {
    "linear": (lambda module: type(module) is nn.Linear, _linear_forward),
    "norms": (_is_norm, _norm_forward),
    "feed-forward": (_is_feed_forward, _feed_forward),
    "attention": (_is_attention, _attention_forward),
}


def fuse(model: Any, probe: Callable[[Any], Tensor]) -> list[str]:
    """Replace the known parts of `model` where that changes nothing but rounding.

    Args:
        model: a transformers causal LM in fp32, packed attention switched on.
        probe: gives the hidden states of a few tokens by it.

    Returns:
        What was replaced, by name (the keys of PARTS).
    """
    done = []
    with torch.no_grad():
        wanted = probe(model)
        for name, (known, forward) in PARTS.items():
            modules = [m for m in model.modules() if known(m)]
            for module in modules:
                module.forward = MethodType(forward, module)
            if modules and _same(model, probe, wanted):
                done.append(name)
            else:
                for module in modules:
                    del module.forward
    return done


def _same(model: Any, probe: Callable[[Any], Tensor], wanted: Tensor) -> bool:
    try:
        got = probe(model)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return False
    return got.shape == wanted.shape and float((got - wanted).abs().max()) <= TOLERANCE * max(1.0, float(wanted.abs().max()))


def restore(model: Any) -> None:
    """Give the replaced parts their own forward back."""
    for module in model.modules():
        if "forward" in vars(module) and getattr(module.forward, "__func__", None) in {f for _, f in PARTS.values()}:
            del module.forward


def join_weights(model: Any) -> None:
    """Lay the weights that are multiplied together next to each other, so that `joined_linear` is one product. Values stay."""
    for module in model.modules():
        for known, names in ((_is_attention, ("q_proj", "k_proj", "v_proj")), (_is_feed_forward, ("gate_proj", "up_proj"))):
            if not known(module):
                continue
            weights = [getattr(module, name).weight for name in names]
            if len({w.dtype for w in weights}) == 1 and not _neighbours(weights):
                whole = torch.cat([w.detach() for w in weights])
                for w, part in zip(weights, whole.split([w.shape[0] for w in weights]), strict=True):
                    w.data = part
