"""Packed attention as transformers calls it: registered once, switched on for a model. Knows transformers' keyword names."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from cairn.errors import UserError, did_you_mean
from cairn.model.packing.backends import BACKENDS, packed_attention
from cairn.model.packing.layout import Layout

NAME = "cairn_packed"
HARMLESS = frozenset({
    "position_ids", "position_embeddings", "cache_position", "use_cache", "past_key_values", "output_attentions", "output_hidden_states",
    "output_router_logits", "return_dict", "num_items_in_batch", "deterministic",
})  # fmt: skip
"""Keywords that families pass along and that change nothing here. Any other one might be a rule, and is refused."""


def implementation(backend: str = "auto") -> str:
    """transformers' name of packed attention on `backend`; registers it.

    Raises:
        UserError: no such backend.
    """
    from transformers import AttentionInterface

    known = ["auto", *BACKENDS]
    if backend not in known:
        raise UserError(f"unknown attention backend '{backend}'", where="attention", remedy=did_you_mean(backend, known))
    name = NAME if backend == "auto" else f"{NAME}_{known.index(backend)}"  # transformers reads meaning into names with "flash" or "flex"
    AttentionInterface.register(name, partial(_interface, backend=backend))
    return name


def enable(model: Any, backend: str = "auto") -> None:
    """Make `model` (a transformers causal LM) take `packing=Layout` in its forward."""
    model.set_attn_implementation(implementation(backend))


def _interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Layout | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    backend: str = "auto",
    **rest: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: tensors of 1 × heads × T × D; returns 1 × T × heads × D.

    Raises:
        NotImplementedError: a mask, dropout, or a rule that is not known here.
    """
    if packing is None:
        raise NotImplementedError("its layers do not hand a row's layout on to attention")
    if query.shape[0] != 1 or dropout or attention_mask is not None:
        raise NotImplementedError("packed attention needs one row, and no dropout or mask")
    if is_causal is False or not getattr(module, "is_causal", True) or key.shape[2] != query.shape[2]:
        raise NotImplementedError("packed attention is causal, over the row's own keys")
    window = rest.pop("sliding_window", getattr(module, "sliding_window", None))
    unknown = sorted(name for name, given in rest.items() if given is not None and name not in HARMLESS)
    if unknown:
        raise NotImplementedError(f"its attention takes '{unknown[0]}', which packed attention does not know")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    o = packed_attention(q, k, v, packing, scale, window, softcap=softcap, sinks_H=s_aux, backend=backend)
    return o[None], None
