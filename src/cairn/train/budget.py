"""One dial: from a compute budget to a model's shape, its tokens, batch and rates. Pure arithmetic; knows no torch and no stage.

| what | rule | from |
|---|---|---|
| tokens | 20 a parameter that tokens are multiplied with | Hoffmann et al. 2022 (Chinchilla) |
| FLOPs | 6 a parameter and token, and attention's | Kaplan et al. 2020; `model.config.training_flops` |
| width / layers | 64 | between pebble's 48 and Llama 7B's 128; the loss hardly depends on it (Kaplan et al. 2020) |
| feed-forward width | about 8/3 of the width; fills what lies between two steps of width and depth | Shazeer 2020 (gated units) |
| head size | 32 or near it, from width 512 on 64, from 2048 on 128 | |
| tokens a step | pebble's 2,048, growing with the root of all tokens; a power of two of sequences | Zhang et al. 2024 (critical batch) |
| rates | pebble's, tuned at width 192, carried to other widths by muP | Yang et al. 2022 |

Rates do not change with the batch or the tokens: a batch b times as large wants a rate sqrt(b) times as high (Malladi et al. 2022), a run r
times as long one about r^-0.3 as high (Bjorck et al. 2024), and with b = sqrt(r) the two all but cancel.

Only + - * / and square roots of doubles are used, which IEEE 754 rounds in one way: the same budget gives the same shape on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import Field, model_validator

from cairn.config import Config, Invalid
from cairn.model.config import training_flops

ASPECT = 64
BASE_WIDTH, BASE_HEAD = 192, 32
BASE_STEP_TOKENS, BASE_TOKENS = 2048, 4_600_000
"""Pebble's step and its tokens in all (docs/experiments.md)."""
MICRO_SEQUENCES = 16
"""Sequences that go through the model at once; larger steps accumulate."""
WIDEST = 16_384
CONTEXT = 1024
MODEL = {"family": "qwen3", "tied": False, "embedding_range": 1.0, "initializer_range": 0.02}
OPTIMIZER = {"kind": "muon", "lr": 0.02, "adam_lr": 0.01, "embedding_lr": 0.1}


class Budget(Config):
    """A compute budget, out of which a fresh model's shape, tokens, batch and rates are chosen; what the recipe gives itself stays."""

    flops: float = Field(gt=0)
    """Floating-point operations of the training, such as 1e15."""
    tokens_per_parameter: float = Field(default=20.0, gt=0)
    """Tokens for each parameter that tokens are multiplied with (all but an untied input embedding)."""
    vocab_size: int | None = Field(default=None, gt=0)
    """Tokens of the vocabulary; None: as many as the tokenizer's stage is told to train."""

    @model_validator(mode="before")
    @classmethod
    def _no_clock(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "seconds" in value:
            # A measured speed in the key would make another artifact on every machine and every day.
            what = "a budget is given in flops: seconds would mean another model on every machine"
            raise Invalid(what, "take seconds x 0.3 x the FLOP/s of a matrix product, which `cairn doctor` measures")
        return value


@dataclass(frozen=True)
class Shape:
    """A model's sizes; by default the ladder's."""

    hidden_size: int
    layers: int
    intermediate_size: int
    heads: int
    head_size: int

    def matrices(self, vocab: int, kv_heads: int | None = None) -> int:
        """Parameters that every token is multiplied with: attention, gated feed-forward, and the head (norms are left out)."""
        attention = 2 * self.hidden_size * self.head_size * (self.heads + (kv_heads or self.heads))
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size) + vocab * self.hidden_size

    def flops(self, vocab: int, tokens: float, length: float, kv_heads: int | None = None) -> float:
        """Of a training on so many tokens, in documents of that mean length."""
        width = self.heads * self.head_size
        return training_flops(self.matrices(vocab, kv_heads), 1, layers=self.layers, hidden_size=width, mean_length=length) * tokens


def _step(width: int) -> int:
    """How much wider the next width is: at most a fifth, so that FLOPs can be met between two of them."""
    return 8 if width < 96 else 16 if width < 192 else 32 if width < 512 else 64 if width < 2048 else 128


def _heads(width: int) -> int:
    """As many as give the head size that is nearest to the wanted one; rotary positions need it even."""
    wanted = width / (32 if width < 512 else 64 if width < 2048 else 128)
    counts = [n for n in range(1, width // 2 + 1) if width % (2 * n) == 0] or [1]
    return min(counts, key=lambda n: (abs(n - wanted), n))


def _shape(width: int, layers: int, inner: int) -> Shape:
    heads = _heads(width)
    return Shape(width, layers, inner, heads, width // heads)


def _rungs() -> Iterator[tuple[int, int]]:
    """(width, layers), from (64, 2) on: the width takes a step, then the layers follow one by one."""
    width, layers = 64, 2
    while width <= WIDEST:
        yield width, layers
        while layers < round(width / ASPECT):
            layers += 1
            yield width, layers
        width += _step(width)


def _block(width: int, layers: int, inner: float) -> float:
    """Parameters of all blocks."""
    return layers * (4.0 * width * width + 3.0 * width * inner)


@lru_cache(maxsize=1)
def ladder() -> tuple[Shape, ...]:
    """All shapes that the dial knows, each larger than the one before, none narrower or shallower.

    A step of width or depth is large for a small model (2 to 3 layers: half of it). Between two steps the feed-forward width grows in
    eighths, from where the smaller shape's range ends: the middle, by ratio, of both at 8/3.
    """
    rungs = list(_rungs())
    usual = [_block(w, n, w * 8 / 3) for w, n in rungs]
    found: list[Shape] = []
    last = 0.0
    for i, (width, layers) in enumerate(rungs):
        low = math.sqrt(usual[i - 1] * usual[i]) if i else usual[0] / 1.25
        high = math.sqrt(usual[i] * usual[i + 1]) if i + 1 < len(rungs) else usual[i] * 1.25
        step = 8 if width < 512 else 64
        inner = step * max(1, math.ceil((low / layers - 4.0 * width * width) / (3.0 * width * step)))
        while _block(width, layers, inner) <= high:
            if _block(width, layers, inner) > last:
                last = _block(width, layers, inner)
                found.append(_shape(width, layers, inner))
            inner += step
    return tuple(found)


def choose(budget: Budget, vocab: int, length: float) -> tuple[Shape, int]:
    """A shape of the ladder and its tokens; neither falls when the budget grows, and their FLOPs are within 10 % of it.

    Each shape has a cost: its FLOPs at its own tokens. Between two costs the tokens grow linearly, and the shape is the one with which
    they come nearer to the budget.

    Raises:
        ValueError: a budget below the smallest model or beyond the ladder.
    """
    shapes, ratio = ladder(), budget.tokens_per_parameter

    def tokens(i: int) -> float:
        return ratio * shapes[i].matrices(vocab)

    def cost(i: int) -> float:
        return shapes[i].flops(vocab, tokens(i), length)

    low, high = 0, len(shapes) - 1
    if budget.flops < cost(low):
        raise ValueError(f"a budget of {budget.flops:.3g} FLOPs is too small: the smallest model takes {cost(low):.2g}")
    if budget.flops > cost(high):
        raise ValueError(f"a budget of {budget.flops:.3g} FLOPs is beyond these rules, which end at {cost(high):.2g}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget.flops else (low, middle)
    share = (budget.flops - cost(low)) / (cost(high) - cost(low))
    wanted = tokens(low) + share * (tokens(high) - tokens(low))
    below, above = (shapes[i].flops(vocab, wanted, length) for i in (low, high))
    return shapes[low] if budget.flops - below <= above - budget.flops else shapes[high], int(wanted)


def batch_sequences(tokens: float, sequence_length: int) -> int:
    """Sequences in a step of a training on so many tokens: a power of two."""
    wanted = BASE_STEP_TOKENS * math.sqrt(tokens / BASE_TOKENS) / sequence_length
    count = 1
    while count * 1.5 < wanted:
        count *= 2
    return count


def resolve(budget: Budget, given: Mapping[str, Any], vocab: int, sequence_length: int) -> dict[str, Any]:
    """Every key of a training that the budget decides, with its value; what was given in the recipe stays.

    Args:
        budget: the compute.
        given: keys that the recipe gives itself: `model` and `optimizer` as mappings, the others by name.
        vocab: tokens of the vocabulary.
        sequence_length: of the training.

    Returns:
        model, optimizer, tokens (unless steps were given), batch_sequences, accumulate.

    Raises:
        ValueError: a budget below the smallest model or beyond the ladder.
    """
    length = sequence_length / 4  # documents are shorter than their limit, as in `cairn plan`; only attention's small share depends on it
    shape, tokens = choose(budget, vocab, length)
    own, chosen = dict(given.get("model") or {}), _model(shape)
    if "hidden_size" in own:
        width = int(own["hidden_size"])
        chosen = _model(_shape(width, max(2, round(width / ASPECT)), 8 * max(1, round(width / 3))))
    base = {**MODEL, "context": max(CONTEXT, sequence_length), "mup": {"base_width": BASE_WIDTH, "base_head_size": BASE_HEAD}}
    model = {**base, **chosen, **own}
    if own.get("tied"):
        model["embedding_range"] = own.get("embedding_range")
    width, heads, kv_heads = int(model["hidden_size"]), int(model["heads"]), model.get("kv_heads")
    final = Shape(width, int(model["layers"]), int(model["intermediate_size"]), heads, int(model.get("head_size") or width // heads))
    if final != shape or kv_heads:
        # The recipe's own shape: the tokens are what it leaves of the budget.
        tokens = max(1, int(budget.flops / final.flops(vocab, 1.0, length, kv_heads)))
    sequences = batch_sequences(tokens, sequence_length)
    micro = min(sequences, MICRO_SEQUENCES)
    found = {"model": model, "optimizer": {**OPTIMIZER, **dict(given.get("optimizer") or {})}, "batch_sequences": micro}
    found["accumulate"] = max(1, sequences // int(given.get("batch_sequences") or micro))
    if given.get("steps") is None:
        found["tokens"] = tokens
    return {**found, **{k: v for k, v in given.items() if v is not None and k not in ("model", "optimizer")}}


def _model(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden_size, "layers": shape.layers, "heads": shape.heads, "intermediate_size": shape.intermediate_size,
    }  # fmt: skip
