"""Whether a model packs: packed documents must give what the model's own attention gives each alone. Asked at every training start.

Windows, soft caps and clips of a real model are wide against documents of a few tokens, and one that is ignored would not show; so they
are narrowed while the check runs. That keeps the check fast, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cairn.model.packing.backends import choose
from cairn.model.packing.interface import enable, implementation
from cairn.model.packing.layout import Layout
from cairn.model.packing.rules import Case

CAPS = {"attn_logit_softcapping": 0.05, "attn_softcap": 0.05}
"""What soft caps are set to during the check, by transformers' names of them."""
NARROW = {
    "sliding_window": 3, "sliding_window_size": 3, "window_size": 3, "attention_window": 3, "attention_window_size": 3,
    "attention_chunk_size": 3, "clip_qkv": 0.05, **CAPS,
}  # fmt: skip
"""The same of these, of windows (tokens) and of clips."""
LENGTHS = (9, 7)
"""Tokens of the two documents: longer than a narrowed window."""
TOLERANCE = {torch.float32: 1e-4}
"""Largest difference of hidden states, as a share of the largest; 3e-2 for half precision."""


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        packs: whether documents may be packed.
        why: why not; empty if they may.
        backends: the backends that will attend, each with why no faster one does; empty where it is the best of its device.
    """

    packs: bool
    why: str = ""
    backends: dict[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What a user should know: that documents are not packed, or why a slower backend attends; empty where all is best."""
        if not self.packs:
            return f"is not packed ({self.why}): it trains documents one by one, which is slower"
        slower = [f"{name} ({why})" for name, why in self.backends.items() if why]
        return f"attends by {', '.join(slower)}" if slower else ""


def try_packing(model: Any, backend: str = "auto", *, longest: int | None = None, dtype: torch.dtype | None = None) -> Verdict:
    """Switch packed attention on if documents do not see each other then; otherwise leave the model as it was.

    Args:
        model: a transformers causal LM, in evaluation mode.
        backend: auto, varlen, flex or buckets.
        longest: the most tokens of a document to come: some rotary embeddings change with the farthest position of a row.
        dtype: what it will compute in; None for the type that it has now.

    Raises:
        UserError: no such backend, or the one that was asked for by name cannot serve this model.
    """
    name = implementation(backend)
    before = model.config._attn_implementation
    if not getattr(model, "_can_set_attn_implementation", lambda: True)():
        return Verdict(False, "its attention cannot be replaced")
    try:
        # Whether the model's rules arrive is seen in plain torch and the type that it has now; whether the backend that will
        # attend keeps them is tried by itself, in `dtype`: compiling one for another type would be waited for in vain.
        enable(model, "buckets")
    except (ValueError, NotImplementedError, AttributeError) as error:
        return Verdict(False, _first_line(error))
    cases: set[Case] = set()
    why = check(model, longest, cases)
    model.set_attn_implementation(before if why else name)
    if why:
        return Verdict(False, why)
    return Verdict(True, "", dict(choose(replace(case, dtype=dtype or case.dtype), backend) for case in cases))


def packs_cleanly(model: Any, longest: int | None = None) -> bool:
    """Whether `check` finds nothing wrong with a model on which packed attention is enabled."""
    return not check(model, longest)


def check(model: Any, longest: int | None = None, cases: set[Case] | None = None) -> str:
    """Compare two packed documents with each alone through the model's own plain attention, and change one to see the other stand still.

    Some families carry a state or a mask across the border (MPT, Mamba, Jamba do): those must be trained unpacked.

    Args:
        model: packed attention is enabled on it.
        longest: as in `try_packing`.
        cases: where to put what its layers ask of attention.

    Returns:
        What is wrong; empty if nothing.
    """
    cases = set() if cases is None else cases
    device, vocab = next(model.parameters()).device, model.get_input_embeddings().weight.shape[0]
    a, b = ((torch.arange(n, device=device) * step + 1) % vocab for n, step in zip(LENGTHS, (5, 3), strict=True))
    far = max(0, (longest or 0) - LENGTHS[0])
    layout = Layout(LENGTHS, device, cases)
    with torch.no_grad(), narrowed(model):
        try:
            first, second = (_packed(model, (x, b), far, layout) for x in (a, (a + 1) % vocab))
        except (NotImplementedError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            return _first_line(error)
        if not cases:
            return "its layers do not call an attention that can be replaced"
        with _plain(model):
            alone = torch.cat([states_alone(model, a, far), states_alone(model, b)])
    scale = max(1.0, float(alone.abs().max()))
    moved = float((first[len(a) :] - second[len(a) :]).abs().max()) / scale
    differs = float((first - alone).abs().max()) / scale
    tolerance = TOLERANCE.get(first.dtype, 3e-2)
    if not moved <= tolerance / 10:
        return f"a document's states move by {moved:.0e} when another one changes"
    if not differs <= tolerance:
        return f"packed documents' states differ by {differs:.0e} from those of each alone"
    return ""


def answers_agree(model: Any) -> bool:
    """Whether a prompt with two answers behind it gives what each answer gives behind a prompt of its own.

    A family that packs may still count places along the row, not by their positions, and then the second answer would stand too far off.
    """
    device, vocab = next(model.parameters()).device, model.get_input_embeddings().weight.shape[0]
    prompt, one, other = (torch.arange(n, device=device) * step + 1 for n, step in ((5, 5), (4, 3), (6, 7)))
    prompt, one, other = prompt % vocab, one % vocab, other % vocab
    positions = torch.cat([torch.arange(9), torch.arange(5, 11)]).to(device)
    layout = Layout.of((15,), device, [(4, 6)])
    with torch.no_grad(), narrowed(model):
        ids = torch.cat([prompt, one, other])[None]
        shared = model.base_model(input_ids=ids, position_ids=positions[None], use_cache=False, packing=layout).last_hidden_state[0]
        alone = [_packed(model, (torch.cat([prompt, answer]), prompt), 0, Layout((5 + len(answer), 5), device)) for answer in (one, other)]
    wanted = torch.cat([alone[0][:9], alone[1][5:11]])
    return agree(shared, wanted)


def agree(states: Tensor, wanted: Tensor) -> bool:
    """Whether hidden states differ by no more than rounding in their type explains."""
    return float((states - wanted).abs().max()) <= TOLERANCE.get(states.dtype, 3e-2) * max(1.0, float(wanted.abs().max()))


def probe(model: Any, longest: int | None = None) -> Tensor:
    """Hidden states of two short packed documents, windows and soft caps narrowed: what a change of the model's parts must not change.

    Args:
        model: packed attention is enabled on it.
        longest: the most tokens of a document to come: some families change their scores with the position, but only far out.
    """
    device, vocab = next(model.parameters()).device, model.get_input_embeddings().weight.shape[0]
    a, b = ((torch.arange(n, device=device) * step + 1) % vocab for n, step in zip(LENGTHS, (5, 3), strict=True))
    with narrowed(model):
        return _packed(model, (a, b), max(0, (longest or 0) - LENGTHS[0]), Layout(LENGTHS, device))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _packed(model: Any, documents: tuple[Tensor, Tensor], far: int, layout: Layout) -> Tensor:
    positions = torch.cat([torch.arange(len(d), device=d.device) + start for d, start in zip(documents, (far, 0), strict=True)])
    body = model.base_model
    return body(input_ids=torch.cat(documents)[None], position_ids=positions[None], use_cache=False, packing=layout).last_hidden_state[0]


def states_alone(model: Any, ids: Tensor, far: int = 0) -> Tensor:
    """Hidden states (T, D) of one document that stands alone, its first position at `far`."""
    positions = torch.arange(len(ids), device=ids.device) + far
    return model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False).last_hidden_state[0]


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """The family's own attention in plain torch, which knows all of the family's rules."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def narrowed(model: Any) -> Iterator[None]:
    """Windows and soft caps as in NARROW, wherever the model keeps a copy of one, for as long as this lasts."""
    modules = list(model.modules())
    holders = [*modules, *{id(m.config): m.config for m in modules if hasattr(m, "config")}.values()]
    undo = []
    for holder in holders:
        for name, narrow in NARROW.items():
            value = vars(holder).get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                undo.append((holder, name, value))
                vars(holder)[name] = narrow  # not by setattr: a configuration would check the type and refuse
    try:
        yield
    finally:
        for holder, name, value in undo:
            vars(holder)[name] = value
