"""Which backend attends, by device, type, head size and what is installed. Knows the backends; no model.

On CUDA a backend is tried before it is trusted: on three small documents its values and gradients must be those of plain torch. So
a library that reads a window otherwise, or a compiler that fails here, costs speed and is told, and never changes a result.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.model.packing import cpu, flex, varlen
from cairn.model.packing.layout import Layout
from cairn.model.packing.rules import Case, Rules

BACKENDS: dict[str, ModuleType] = {"varlen": varlen, "flex": flex, "buckets": cpu}
"""From the fastest to the one that serves everything."""
TRIAL = (3, 40, 150)
"""Lengths of the documents of a trial: more than one block of flex attention, with a ragged end."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest difference of a trial, as a share of the largest value."""


def packed_attention(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGE: Tensor,
    layout: Layout,
    scale: float,
    window: int | None = None,
    *,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention inside each document of `layout`; an answer of a document sees its prompt and itself.

    Args:
        q_THD: queries, T tokens × H heads × D.
        k_TGD: keys, T × G × D, H a multiple of G.
        v_TGE: values, T × G × E; E may differ from D.
        layout: the documents.
        scale: what scores are multiplied with.
        window: how many keys back a query sees, itself included; None for all.
        softcap: scores are squashed to this size; None for not.
        sinks_H: each head's score of the sink; None for none.
        backend: auto, varlen, flex or buckets.

    Returns:
        o_THE.

    Raises:
        UserError: the backend that was asked for cannot serve this.
    """
    if window is not None and window >= layout.longest:
        window = None
    rules = Rules(scale, window, softcap, sinks_H)
    case = Case.of(q_THD, k_TGD, v_TGE, rules)
    if layout.cases is not None:
        layout.cases.add(case)
    name, _ = choose(case, backend)
    if layout.answers and name != "buckets":
        apart, to_paths_P, to_flat_T, again = layout.apart
        q, k, v = (_Repeated.apply(x, to_paths_P, to_flat_T, again) for x in (q_THD, k_TGD, v_TGE))
        return BACKENDS[name].attend(q, k, v, apart, rules).index_select(0, to_flat_T)
    return BACKENDS[name].attend(q_THD, k_TGD, v_TGE, layout, rules)


class _Repeated(torch.autograd.Function):
    """Tokens laid out as the answers' paths, prompts repeated."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, to_paths_P: Tensor, to_flat_T: Tensor, again: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
        ctx.back = (to_flat_T, again)
        return x_THD.index_select(0, to_paths_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return cpu.gathered(grads[0], *ctx.back), None, None, None


@lru_cache(maxsize=256)
def choose(case: Case, backend: str = "auto") -> tuple[str, str]:
    """The backend that serves `case`, and why no faster one does (empty on a CPU, where buckets are the fastest).

    Raises:
        UserError: `backend` was asked for by name and cannot.
    """
    if backend != "auto":
        reason = _refusal(backend, case)
        if reason:
            what = f"the attention backend '{backend}' cannot serve this model: {reason}"
            raise UserError(what, where="attention", remedy="set it to auto")
        return backend, ""
    reasons: list[str] = []
    for name in BACKENDS:
        reason = _refusal(name, case)
        if not reason:
            return name, "" if case.device == "cpu" else "; ".join(reasons)
        reasons.append(reason)
    raise AssertionError("buckets serve every case")


def _refusal(name: str, case: Case) -> str:
    return BACKENDS[name].lacks(case) or (trial(name, case) if case.device == "cuda" and name != "buckets" else "")


def trial(name: str, case: Case) -> str:
    """What is wrong with a backend's values or gradients on small documents, against plain torch in fp32; empty if nothing."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(case.heads, case.key_size), (case.groups, case.key_size), (case.groups, case.value_size)]
    # As large as scores get in a trained model, so that a cap or a window that is not kept shows.
    inputs = [torch.randn(sum(TRIAL), *s, generator=draw).to(case.device, case.dtype) for s in shapes]
    if case.sinks:
        inputs.append(torch.randn(case.heads, generator=draw).to(case.device, case.dtype))
    softcap = None if case.softcap is None else 1.0
    try:
        found = _values_and_gradients(name, inputs, case, softcap)
        wanted = _values_and_gradients("buckets", [x.float() for x in inputs], case, softcap)
    except Exception as error:  # a compiler or a library may fail with anything; its words are handed on
        return f"'{name}' fails here ({str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__})"
    for mine, theirs in zip(found, wanted, strict=True):
        off = float((mine.float() - theirs).abs().max() / theirs.abs().max())
        if not off <= TOLERANCE.get(case.dtype, 1e-4):
            return f"'{name}' differs from plain attention here (by {off:.1e} of the largest value)"
    return ""


def _values_and_gradients(name: str, inputs: list[Tensor], case: Case, softcap: float | None) -> list[Tensor]:
    layout = Layout.of(TRIAL, case.device)
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        rules = Rules(2.0 * case.key_size**-0.5, 20 if case.windowed else None, softcap, leaves[3] if case.sinks else None)
        out = BACKENDS[name].attend(*leaves[:3], layout, rules)
        weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float32).view_as(out)
        return [out.detach(), *torch.autograd.grad((out * weights.to(out.dtype)).sum(), leaves)]
