"""The maximal update parametrisation for any causal LM: what starts smaller and moves slower in a wider model. Knows no optimiser.

Yang et al. 2022 (Tensor Programs V), table 3; with m = width / base width:

| weight | standard deviation | Adam's rate | Muon's rate |
|---|---|---|---|
| matrix whose both sides grow | 1 / sqrt(m) | 1 / m | 1 |
| matrix whose input side alone grows (a router) | 1 / m | 1 / m | 1 / sqrt(m) |
| embeddings, biases, gains | 1 | 1 | 1 |
| output head | 1 / m | 1 / m | (AdamW moves it) |

Muon's column is the spectral condition (Yang, Simon, Bernstein 2023): an update should have the spectral norm sqrt(out / in). Muon's has
rate · sqrt(max(1, out / in)), so min(1, sqrt(out / in)) against the same at the base width is left, which is 1 where both sides grow.

Multipliers (of embeddings, scores, logits) become keys of the family's own configuration where it has them. Elsewhere they vanish in
weights: with W' = c W, a weight that starts c times as large and moves c times as fast gives the very same function, for an optimiser that
does not see the gradient's scale, as Adam and Muon do not (only clipping measures the gradient in the new units). So an exported folder is
an ordinary one. Each multiplier is checked on the model itself. `config.mup` of the saved model keeps what later trainings need: the two
widths, and what vanished where.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.model.config import MupConfig

OUTPUT_KEYS = ("logits_scaling", "logit_scale", "lm_head_multiplier")
INPUT_KEYS = ("embedding_multiplier",)
SCORE_KEYS = ("attention_multiplier", "query_pre_attn_scalar")
WIDTHS = ("hidden_size", "num_attention_heads", "num_key_value_heads")
"""Keys that grow with a model's width, beside every `…intermediate_size`."""
PROBE = "cairn_scores_probe"


@dataclass(frozen=True)
class Weight:
    """A weight as the rules see it."""

    shape: tuple[int, ...]
    grows: tuple[bool, ...]
    """For each side, whether it gets longer in a wider model."""
    table: bool = False
    """Whether its rows are looked up (an embedding), so that none of its sides is summed over."""
    head: bool = False
    """Whether it is the output head, and not tied."""

    @property
    def matrix(self) -> bool:
        """Whether a growing side is summed over."""
        return len(self.shape) >= 2 and not self.table and self.grows[-1]


@dataclass(frozen=True)
class Scale:
    """A weight's factors of the recipe's rate, under AdamW and under Muon."""

    adam: float = 1.0
    muon: float = 1.0


def rate_scales(ratio: float, weights: Mapping[str, Weight], folded: Mapping[str, float]) -> dict[str, Scale]:
    """What each weight's rate is multiplied with. Pure.

    Args:
        ratio: width / base width.
        weights: the weights by name.
        folded: multipliers that vanished in weights, by the weight's name.
    """
    found = {}
    for name, weight in weights.items():
        factor = folded.get(name, 1.0)
        # The head's 1 / m is its multiplier's: it stands in `folded`, or in a key of the family's configuration.
        adam = 1.0 / ratio if weight.matrix and not weight.head else 1.0
        found[name] = Scale(adam * factor, _spectral(weight, ratio) * factor)
    return found


def _spectral(weight: Weight, ratio: float) -> float:
    if len(weight.shape) < 2 or weight.table or weight.head:
        return 1.0
    rows, columns = weight.shape[-2:]
    base_rows, base_columns = (n / ratio if grows else n for n, grows in zip((rows, columns), weight.grows[-2:], strict=True))
    return min(1.0, math.sqrt(rows / columns)) / min(1.0, math.sqrt(base_rows / base_columns))


def start_scale(weight: Weight, ratio: float) -> float:
    """What a weight's initial standard deviation is multiplied with; the head's is a multiplier's matter."""
    if weight.head or not weight.matrix:
        return 1.0
    return ratio**-0.5 if weight.grows[-2] else 1.0 / ratio


def weights_of(model: Any) -> dict[str, Weight]:
    """The weights of a transformers causal LM. Which sides grow is read off a model of twice the width, built without memory.

    Raises:
        UserError: the family cannot be built at twice the width.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    for key in [*WIDTHS, *(k for k in config.to_dict() if k.endswith("intermediate_size"))]:
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, 2 * getattr(config, key))
    try:
        with torch.device("meta"):
            wide = {n: tuple(p.shape) for n, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    except (ValueError, RuntimeError, AssertionError) as error:
        what = f"the family '{model.config.model_type}' cannot be built at twice the width: {error}"
        raise UserError(what, where="model.mup", remedy="use another family, or leave mup away") from error
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    found = {}
    for name, p in model.named_parameters():
        # An adapter's weights stand in no plain model; they move at the recipe's own rate.
        if name in wide:
            grows = tuple(a != b for a, b in zip(p.shape, wide[name], strict=True))
            found[name] = Weight(tuple(p.shape), grows, id(p) in tables, p is head.weight and id(p) not in tables)
    return found


def scales_of(model: Any) -> dict[str, Scale]:
    """The rates' factors of a model that `parametrise` made, in this process or before it was saved; none for any other model."""
    kept = getattr(model.config, "mup", None)
    if not kept:
        return {}
    return rate_scales(kept["width"] / kept["base_width"], weights_of(model), kept["folded"])


@torch.no_grad()
def parametrise(model: Any, mup: MupConfig) -> None:
    """Turn a fresh model into one of the maximal update parametrisation, in place.

    Raises:
        UserError: the family does not start from `initializer_range`, or has no place for a multiplier.
    """
    config, training = model.config, model.training
    model.eval()
    weights, named = weights_of(model), dict(model.named_parameters())
    ratio = config.hidden_size / mup.base_width
    _check_start(model, [named[n] for n, w in weights.items() if w.matrix and not w.head and all(w.grows)])
    for name, weight in weights.items():
        named[name].mul_(start_scale(weight, ratio))
    folded: dict[str, float] = {}
    tied = not any(w.head for w in weights.values())
    output = mup.output_multiplier / ratio
    if mup.input_multiplier != 1.0 and not _by_key(model, INPUT_KEYS, mup.input_multiplier, lambda: _embedded(model)):
        table = model.get_input_embeddings().weight
        table.mul_(mup.input_multiplier)
        folded[_name(model, table)] = mup.input_multiplier
        # A tied embedding is the head as well, which must not feel this multiplier.
        output /= mup.input_multiplier if tied else 1.0
    if output != 1.0 and not _by_key(model, OUTPUT_KEYS, output, lambda: _logits(model)):
        folded |= _fold_output(model, output, tied)
    if mup.base_head_size is not None:
        folded |= _scale_scores(model, mup.base_head_size)
    config.mup = {"base_width": mup.base_width, "width": config.hidden_size, "folded": folded}
    model.train(training)


def _check_start(model: Any, matrices: list[Tensor]) -> None:
    """A family whose own deviations depend on its width would be scaled twice."""
    given = model.config.initializer_range
    largest = max(float(p.std()) for p in matrices)
    if not 0.85 <= largest / given <= 1.15:
        what = f"the family '{model.config.model_type}' starts from a deviation of {largest:.3g}, not from initializer_range ({given})"
        raise UserError(what, where="model.mup", remedy="use another family, or leave mup away")


def _name(model: Any, weight: Tensor) -> str:
    return next(name for name, p in model.named_parameters() if p is weight)


# -- multipliers ----------------------------------------------------------------------------------------------------


def _close(after: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(after, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()) + 1e-12)


def _ids(model: Any) -> Tensor:
    return (torch.arange(6, device=next(model.parameters()).device) * 5 + 1)[None] % model.get_input_embeddings().weight.shape[0]


def _logits(model: Any) -> Tensor:
    return model(input_ids=_ids(model), use_cache=False).logits.float()


def _embedded(model: Any) -> Tensor:
    """What enters the first block."""
    return model(input_ids=_ids(model), use_cache=False, output_hidden_states=True).hidden_states[0].float()


def _by_key(model: Any, keys: tuple[str, ...], factor: float, measure: Callable[[], Tensor]) -> bool:
    """Put a multiplier into the family's own key, if it has one. Families multiply with a key or divide by it: what is measured decides."""
    wanted = measure() * factor
    for key in keys:
        value = getattr(model.config, key, None)
        for candidate in _candidates(model, key, factor, 1.0 / factor):
            _set(model, key, candidate)
            if _close(measure(), wanted):
                return True
            _set(model, key, value)
    return False


def _candidates(model: Any, key: str, *factors: float) -> list[float]:
    """The values that a key may take; a key that holds an integer can hold no other number. None where the family has no such key."""
    value = getattr(model.config, key, None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    found = [value * factor for factor in factors]
    return found if isinstance(value, float) else [int(x) for x in found if x == int(x)]


def _set(model: Any, key: str, value: Any) -> None:
    setattr(model.config, key, value)
    for module in model.modules():
        # Modules copy a key when they are built.
        if isinstance(getattr(module, key, None), int | float):
            setattr(module, key, value)


def _fold_output(model: Any, factor: float, tied: bool) -> dict[str, float]:
    """The logits' multiplier in an untied head, or in the gain of the last norm where the head is the embedding."""
    if not tied:
        head = model.get_output_embeddings().weight
        head.mul_(factor)
        return {_name(model, head): factor}
    body = model.base_model
    before = body(input_ids=_ids(model), use_cache=False).last_hidden_state
    for norm in reversed([m for m in body.children() if getattr(getattr(m, "weight", None), "ndim", 0) == 1]):
        scaled = _scale_gain(norm, factor)
        if scaled and _close(body(input_ids=_ids(model), use_cache=False).last_hidden_state, before * factor):
            return {_name(model, p): factor for p in scaled}
    what = f"a tied '{model.config.model_type}' has no place for the logits' multiplier"
    raise UserError(what, where="model.mup", remedy="set tied: false, or use another family")


def _scale_gain(norm: Any, factor: float) -> list[Tensor]:
    """Make a norm give `factor` times what it gave, gains of the form w and 1 + w alike; its weights, or none if it does not follow."""
    x = torch.linspace(-1.0, 1.3, 2 * norm.weight.numel(), device=norm.weight.device).view(2, *norm.weight.shape)
    before, kept = norm(x), norm.weight.clone()
    bias = getattr(norm, "bias", None)
    if bias is not None:
        bias.mul_(factor)
    for gain in (kept * factor, (1.0 + kept) * factor - 1.0):
        norm.weight.copy_(gain)
        if _close(norm(x), before * factor):
            return [norm.weight] if bias is None else [norm.weight, bias]
    return []


# -- attention's scores ---------------------------------------------------------------------------------------------


def _scale_scores(model: Any, base_head_size: int) -> dict[str, float]:
    """Let scores be multiplied with sqrt(base_head_size) / head_size, whatever the family multiplies them with itself."""
    seen = _watch_queries(model)
    factors = {math.sqrt(base_head_size) / query.shape[-1] / scaling for query, scaling in seen}
    if len(factors) != 1:
        raise _no_place(model)
    factor = factors.pop()
    if math.isclose(factor, 1.0) or _scores_by_key(model, factor):
        return {}
    return _fold_scores(model, factor, [query * scaling * factor for query, scaling in seen])


def _no_place(model: Any) -> UserError:
    what = f"the family '{model.config.model_type}' has no place for the scores' multiplier"
    remedy = "leave it away and let heads grow in number, or use another family"
    return UserError(what, where="model.mup.base_head_size", remedy=remedy)


def _scores_by_key(model: Any, factor: float) -> bool:
    """Put the scores' multiplier into the family's own key; what the modules make of a key is read off a model built without memory."""
    from transformers import AutoModelForCausalLM

    have = dict(_scalings(model))
    for key in SCORE_KEYS:
        for candidate in _candidates(model, key, factor, factor**-2) if have else ():
            config = copy.deepcopy(model.config)
            setattr(config, key, candidate)
            with torch.device("meta"):
                new = dict(_scalings(AutoModelForCausalLM.from_config(config)))
            if new.keys() == have.keys() and all(math.isclose(new[n], have[n] * factor, rel_tol=1e-6) for n in have):
                setattr(model.config, key, candidate)
                for name, scaling in new.items():
                    model.get_submodule(name).scaling = scaling
                return True
    return False


def _scalings(model: Any) -> Iterator[tuple[str, float]]:
    for name, module in model.named_modules():
        if isinstance(getattr(module, "scaling", None), float):
            yield name, module.scaling


def _fold_scores(model: Any, factor: float, wanted: list[Tensor]) -> dict[str, float]:
    """The scores' multiplier in the queries: in the gain of their norm where they have one, which would undo it in the product before."""
    folded: dict[str, float] = {}
    for module in model.modules():
        if getattr(module, "q_norm", None) is not None and getattr(module.q_norm, "weight", None) is not None:
            scaled = _scale_gain(module.q_norm, factor)
        elif isinstance(getattr(module, "q_proj", None), torch.nn.Linear):
            scaled = [p for p in (module.q_proj.weight, module.q_proj.bias) if p is not None]
            for p in scaled:
                p.mul_(factor)
        else:
            continue
        folded |= {_name(model, p): factor for p in scaled}
    if not all(_close(query * scaling, w) for (query, scaling), w in zip(_watch_queries(model), wanted, strict=True)):
        raise _no_place(model)
    return folded


def _watch_queries(model: Any) -> list[tuple[Tensor, float]]:
    """The queries of every layer and their scale, as attention is given them; empty where the family's attention cannot be watched."""
    from transformers import AttentionInterface

    seen: list[tuple[Tensor, float]] = []

    def probe(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None = None, **_: Any) -> Any:
        seen.append((query.float(), query.shape[-1] ** -0.5 if scaling is None else float(scaling)))
        # Nothing is attended to: every layer's queries then follow from weights that this multiplier does not touch.
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register(PROBE, probe)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(PROBE)
        model(input_ids=_ids(model), use_cache=False)
    except (ValueError, NotImplementedError, AttributeError, RuntimeError):
        return []
    finally:
        model.set_attn_implementation(before)
    return seen
