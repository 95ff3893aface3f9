"""Structured pruning in one shot: whole blocks, heads, inner and hidden channels out of a model, by what they do. Knows no data.

Depth goes by a block's influence, 1 - cos(its input, its output) (ShortGPT, Men et al. 2024). Width goes by activations (Minitron,
Muralidharan et al. 2024): of a group of heads the norm of its output, of an inner channel the norm of what the last matrix of the
feed-forward block is given, of a hidden channel the mean size of what the norms give. What is left is distilled from the whole model
afterwards (as Llama 3.2's small models were).

Which sides of which weights a size belongs to is read off the same family built with that size doubled, without memory; and before
anything is kept, the cut model must give what the whole one gives with the same parts silenced.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cairn.errors import UserError
from cairn.model.adapter import probe_logits
from cairn.model.attention import keep_caps
from cairn.model.recompute import blocks_of

PARITY = 1e-4
"""Largest difference of a logit from the silenced model's, as a share of the largest. fp32 rounding gives about 1e-6."""
SIZES = {"hidden": ("hidden_size",), "heads": ("num_attention_heads", "num_key_value_heads"), "inner": ("intermediate_size",)}
"""The keys of a configuration that each kind of width goes by."""
Sides = dict[str, tuple[str | None, ...]]
"""{weight: for each of its sides the kind of width that it is}"""


@dataclass
class Influence:
    """What was measured of a model.

    Attributes:
        blocks: each block's influence, 0 where it changes nothing.
        hidden: how large each hidden channel is.
        inside: {module: how large each inner channel, or each group of heads, in it is}.
    """

    blocks: list[float] = field(default_factory=list)
    hidden: Tensor = field(default_factory=lambda: torch.zeros(0))
    inside: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """What is to be left; None leaves it as it is."""

    layers: int | None = None
    keep_layers: tuple[int, ...] | None = None
    """Which blocks stay, from 0; None: those of the greatest influence."""
    hidden_size: int | None = None
    heads: int | None = None
    """Query heads. They go in groups that share a key and value head."""
    intermediate_size: int | None = None


# -- what a width belongs to ----------------------------------------------------------------------------------------------


def find_sides(model: Any) -> Sides:
    """Which width each side of each weight is."""
    found: dict[str, list[str | None]] = {name: [None] * p.dim() for name, p in model.named_parameters()}
    for kind, keys in SIZES.items():
        for name, shape in _grown(model, keys).items():
            own = dict(model.named_parameters()).get(name)
            for side in range(len(shape)) if own is not None else ():
                if own is not None and shape[side] != own.shape[side]:
                    found[name][side] = kind
    return {name: tuple(sides) for name, sides in found.items()}


def _grown(model: Any, keys: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the family's weights with these sizes doubled."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    for key in keys:
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, 2 * getattr(config, key))
    try:
        with torch.device("meta"):
            return {n: tuple(p.shape) for n, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    except (ValueError, RuntimeError, AssertionError) as error:
        raise _unknown(model, f"it cannot be built with another {keys[0]}: {error}") from error


def _unknown(model: Any, why: str) -> UserError:
    what = f"the width of '{model.config.model_type}' cannot be cut: {why}"
    return UserError(what, where="prune", remedy="prune its layers alone")


def _groups(model: Any) -> int:
    """Key and value heads; each has its query heads with it."""
    config = model.config
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _units(model: Any, kind: str) -> int:
    """How many parts a kind of width has: groups of heads, or channels."""
    return _groups(model) if kind == "heads" else int(getattr(model.config, SIZES[kind][0]))


# -- measuring ------------------------------------------------------------------------------------------------------------


@contextmanager
def measuring(model: Any, *, width: bool) -> Iterator[Influence]:
    """Watch the model while it runs on calibration rows; at the end the yielded object is filled.

    Args:
        model: a causal LM in evaluation mode, without fused blocks.
        width: watch channels and heads too.

    Raises:
        UserError: a family whose parts are not found.
    """
    found, blocks = Influence(), blocks_of(model)
    turned, tokens = [0.0] * len(blocks), [0]
    sums: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    with ExitStack() as stack:

        def watch(handle: Any) -> None:
            stack.callback(handle.remove)

        def block(number: int) -> Any:
            def hook(module: Any, args: Any, kwargs: Any, out: Any) -> None:
                before, after = _states(args, kwargs), _first(out)
                cos = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
                turned[number] += float((1.0 - cos).sum())
                tokens[0] += cos.numel() if number == 0 else 0

            return hook

        for number, module in enumerate(blocks):
            watch(module.register_forward_hook(block(number), with_kwargs=True))
        if width:
            sides = find_sides(model)
            for parent, (kind, linear) in _ends(model, sides).items():
                watch(linear.register_forward_pre_hook(_adding(sums, parent, _units(model, kind))))
            for name, module in _norms(model, sides).items():
                watch(module.register_forward_hook(_sizing(norms, name)))
        yield found
    if not tokens[0]:
        raise UserError("nothing was measured: there are no calibration rows", where="data", remedy="give rows")
    found.blocks = [value / tokens[0] for value in turned]
    found.inside = {name: value.sqrt() for name, value in sums.items()}
    if norms:
        found.hidden = torch.stack([value / value.mean() for value in norms.values()]).sum(0)


def _states(args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def _first(out: Any) -> Tensor:
    states: Tensor = out[0] if isinstance(out, tuple) else out
    return states


def _adding(sums: dict[str, Tensor], name: str, units: int) -> Any:
    def hook(module: Any, args: Any) -> None:
        square = args[0].double().flatten(0, -2).square().sum(0).view(units, -1).sum(1)
        sums[name] = sums[name] + square if name in sums else square

    return hook


def _sizing(norms: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, args: Any, out: Any) -> None:
        size = out.double().flatten(0, -2).abs().sum(0)
        norms[name] = norms[name] + size if name in norms else size

    return hook


def _ends(model: Any, sides: Sides) -> dict[str, tuple[str, nn.Linear]]:
    """{attention or feed-forward module: (kind, its last matrix, which is given its heads or inner channels)}."""
    found: dict[str, tuple[str, nn.Linear]] = {}
    for name, module in model.named_modules():
        kind = sides.get(f"{name}.weight", (None,))[-1]
        if isinstance(module, nn.Linear) and kind in ("heads", "inner"):
            parent = name.rpartition(".")[0]
            if parent in found:
                raise _unknown(model, f"'{parent}' has two last matrices")
            found[parent] = (kind, module)
    return found


def _norms(model: Any, sides: Sides) -> dict[str, nn.Module]:
    """The norms of the residual stream; those of all heads together may be as wide, or grow with it."""
    size, found = _units(model, "hidden"), {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if sides.get(f"{name}.weight") == ("hidden",) and isinstance(weight, Tensor) and len(weight) == size:
            found[name] = module
    return found


# -- cutting --------------------------------------------------------------------------------------------------------------


def kept_layers(influence: Influence, sizes: Sizes) -> list[int]:
    """The blocks that stay, in their order.

    Raises:
        UserError: more than there are.
    """
    count = len(influence.blocks)
    wanted = len(sizes.keep_layers) if sizes.keep_layers is not None else sizes.layers if sizes.layers is not None else count
    if wanted > count or any(not 0 <= i < count for i in sizes.keep_layers or ()):
        named = sizes.keep_layers is not None
        raise UserError(f"the model has {count} layers, numbered from 0", where="keep_layers" if named else "layers",
                        remedy=f"name some of 0 to {count - 1}" if named else f"keep fewer than {count}")
    if sizes.keep_layers is not None:
        return sorted(sizes.keep_layers)
    return sorted(sorted(range(count), key=lambda i: (-influence.blocks[i], i))[:wanted])


def prune(model: Any, influence: Influence, sizes: Sizes) -> Any:
    """A smaller model of the same family out of a model's weights; the model's own are silenced where they were left out.

    Raises:
        UserError: sizes that do not fit, or a family that cannot be cut so.
    """
    before = model.config
    layers = kept_layers(influence, sizes)
    inside: dict[str, Tensor] = {}
    wanted = {"heads": _wanted_groups(model, sizes), "inner": _wanted(model, "inner", sizes.intermediate_size)}
    sides = find_sides(model) if influence.inside else {}
    for parent, (kind, _) in (_ends(model, sides) if sides else {}).items():
        if wanted[kind] is not None:
            inside[parent] = _largest(influence.inside[parent], int(wanted[kind] or 0))
    for kind, count in wanted.items():
        if count is not None and not any(kind == one for one, _ in _ends(model, sides).values()):
            raise _unknown(model, f"no weight was found that goes by {SIZES[kind][0]}")
    cut = _cut(model, sides, layers, inside, wanted)
    _silence(model, sides, inside)
    with _skipping(model, layers):
        _check(probe_logits(model), probe_logits(cut), before.model_type)
    hidden = _wanted(model, "hidden", sizes.hidden_size)
    if hidden is None:
        return cut
    return _narrow(cut, _largest(influence.hidden, hidden))


def _wanted(model: Any, kind: str, size: int | None) -> int | None:
    """A kind's new size, None where it stays.

    Raises:
        UserError: it is larger than the model's.
    """
    have = int(getattr(model.config, SIZES[kind][0]))
    if size is not None and size > have:
        raise UserError(f"the model's {SIZES[kind][0]} is {have}, and pruning makes nothing larger", where=SIZES[kind][0],
                        remedy=f"set it below {have}")
    return size if size != have else None


def _wanted_groups(model: Any, sizes: Sizes) -> int | None:
    if (heads := _wanted(model, "heads", sizes.heads)) is None:
        return None
    groups, every = _groups(model), int(model.config.num_attention_heads)
    if heads * groups % every:
        what = f"{heads} of {every} heads are no whole number of groups: {every // groups} heads share a key and value head"
        raise UserError(what, where="heads", remedy=f"give a multiple of {every // groups}")
    return heads * groups // every


def _largest(values: Tensor, count: int) -> Tensor:
    """Places of the `count` largest values, ascending; of equal ones the first."""
    return values.sort(descending=True, stable=True).indices[:count].sort().values


def _cut(model: Any, sides: Sides, layers: Sequence[int], inside: Mapping[str, Tensor], wanted: Mapping[str, int | None]) -> Any:
    """The model with these blocks, and in its modules these groups and channels."""
    values = model.config.to_dict()
    count = values["num_hidden_layers"]
    if len(layers) != count:
        # Lists with an entry a layer, such as each one's kind of attention.
        lists = {key: value for key, value in values.items() if "layer" in key and isinstance(value, list) and len(value) == count}
        values |= {"num_hidden_layers": len(layers), **{key: [value[i] for i in layers] for key, value in lists.items()}}
    if wanted["inner"] is not None:
        values["intermediate_size"] = wanted["inner"]
    if (groups := wanted["heads"]) is not None:
        if values.get("head_dim") is None:
            raise _unknown(model, "its configuration has no head_dim, so that fewer heads would be wider ones")
        values["num_attention_heads"] = values["num_attention_heads"] * groups // _groups(model)
        values["num_key_value_heads"] = groups
    prefix = next(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and list(module) == blocks_of(model))
    fresh = _fresh(model, values)
    state = {}
    named = dict(model.named_parameters())
    for name, p in fresh.named_parameters():
        old = name
        if name.startswith(f"{prefix}."):
            number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
            old = f"{prefix}.{layers[int(number)]}.{rest}"
        state[name] = _slice(model, named[old], old, sides, inside)
        if state[name].shape != p.shape:
            raise _unknown(model, f"'{name}' would have the shape {tuple(state[name].shape)}, and {tuple(p.shape)} is expected")
    return _filled(fresh, state)


def _slice(model: Any, weight: Tensor, name: str, sides: Sides, inside: Mapping[str, Tensor]) -> Tensor:
    out = weight.detach()
    for side, kept in _kept_sides(model, name, sides, inside):
        out = out.index_select(side, kept)
    return out.clone()


def _kept_sides(model: Any, name: str, sides: Sides, inside: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """(side, places that stay) of a weight's sides that are cut inside of its module."""
    parent = next((one for one in inside if name.startswith(f"{one}.")), None)
    for side, kind in enumerate(sides.get(name, ())) if parent is not None else ():
        if kind not in ("heads", "inner"):
            continue
        units = _units(model, kind)
        length = dict(model.named_parameters())[name].shape[side]
        if length % units or (kind == "inner" and length != units):
            raise _unknown(model, f"'{name}' holds several matrices in one")
        each = length // units
        yield side, (inside[str(parent)][:, None] * each + torch.arange(each)).flatten()


@torch.no_grad()
def _silence(model: Any, sides: Sides, inside: Mapping[str, Tensor]) -> None:
    """Set to zero in the whole model what was left out of the cut one."""
    for name, p in model.named_parameters():
        for side, kept in _kept_sides(model, name, sides, inside):
            out = torch.ones(p.shape[side], dtype=torch.bool)
            out[kept] = False
            p.index_fill_(side, out.nonzero()[:, 0], 0.0)


@contextmanager
def _skipping(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """Let the blocks that do not stay hand on what they are given."""

    def hook(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        states = _states(args, kwargs)
        return (states, *out[1:]) if isinstance(out, tuple) else states

    skipped = [block for i, block in enumerate(blocks_of(model)) if i not in layers]
    handles = [block.register_forward_hook(hook, with_kwargs=True) for block in skipped]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(whole: Tensor, cut: Tensor, family: str) -> None:
    apart = float((whole - cut).abs().max()) / max(1e-30, float(whole.abs().max()))
    if not apart <= PARITY:
        what = f"the cut model is not '{family}' with the same parts silenced: logits differ by {apart:.1e} of the largest one"
        raise UserError(what, where="prune", remedy="leave away one of layers, heads and intermediate_size, and report the family")


def _narrow(model: Any, kept: Tensor) -> Any:
    """The model with these hidden channels. Its norms measure fewer channels, so its logits are others even where the rest was zero."""
    values = model.config.to_dict()
    if values.get("head_dim") is None:
        raise _unknown(model, "its configuration has no head_dim, so that a narrower model would have other heads")
    values["hidden_size"] = len(kept)
    sides, fresh, named, state = find_sides(model), _fresh(model, values), dict(model.named_parameters()), {}
    for name, p in fresh.named_parameters():
        out = named[name].detach()
        for side, kind in enumerate(sides[name]):
            if kind == "hidden":
                out = out.index_select(side, kept)
        if out.shape != p.shape:
            raise _unknown(model, f"'{name}' would have the shape {tuple(out.shape)}, and {tuple(p.shape)} is expected")
        state[name] = out.clone()
    return _filled(fresh, state)


def _fresh(model: Any, values: Mapping[str, Any]) -> Any:
    """A model of these sizes, whose weights are to be replaced."""
    from transformers import AutoModelForCausalLM

    config = type(model.config).from_dict(dict(values))
    with torch.random.fork_rng(devices=[]):
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.generation_config = copy.deepcopy(model.generation_config)
    return keep_caps(fresh.eval())


def _filled(fresh: Any, state: Mapping[str, Tensor]) -> Any:
    with torch.no_grad():
        for name, p in fresh.named_parameters():
            p.copy_(state[name])
    return fresh
