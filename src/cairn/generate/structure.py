"""Which decoders the compiled forward can run: read off a model's modules, never its name, and proved by numbers. Knows no request.

Known are decoders of RMS norms, rotary positions, (grouped) queries with or without biases and norms of their own, and SiLU-gated
feed-forwards: the shapes of Llama, Qwen 2 and 3, Mistral. What its modules do not show (multipliers, interleaved rotary positions,
caps on logits) shows in the numbers: `probe` makes a small fp32 copy of a model on which both ways must agree to rounding.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles are a function of the position alone, not of how long the sequence became."""


class Unlike(Exception):
    """The model is not of the known structure; its text says what differs."""


@dataclass(frozen=True)
class Block:
    """The parts of one layer; windows in tokens, 0 for none."""

    norm1: Tensor
    norm2: Tensor
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    out: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    window: int


@dataclass(frozen=True)
class Decoder:
    """The parts of a decoder."""

    embed_VH: Tensor
    blocks: list[Block]
    norm: Tensor
    head: nn.Linear
    rotary: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scaling: float


def weights(parts: Decoder) -> list[Tensor]:
    """Every weight and bias of a decoder; a tied embedding twice, for it is the head too."""
    found = [parts.embed_VH, parts.norm]
    layers = [parts.head]
    for block in parts.blocks:
        found += [w for w in (block.norm1, block.norm2, block.q_norm, block.k_norm) if w is not None]
        layers += [block.q, block.k, block.v, block.out, block.gate, block.up, block.down]
    return found + [w for layer in layers for w in (layer.weight, layer.bias) if w is not None]


def _need(found: bool, what: str) -> None:
    if not found:
        raise Unlike(what)


def _children(module: nn.Module, names: set[str], optional: set[str] = frozenset()) -> bool:  # type: ignore[assignment]
    return {name for name, _ in module.named_children()} - optional == names


def _linear(module: nn.Module, name: str) -> nn.Linear:
    found = getattr(module, name)
    _need(type(found) is nn.Linear, f"{name} is no plain linear layer")
    return found


def _gain(module: nn.Module) -> tuple[Tensor, float]:
    """Weight and epsilon of an RMS norm."""
    eps = next((e for e in (getattr(module, n, None) for n in ("variance_epsilon", "eps")) if isinstance(e, float)), None)
    _need([n for n, _ in module.named_parameters()] == ["weight"] and eps is not None, f"{type(module).__name__} is no plain RMS norm")
    assert eps is not None
    return module.weight, eps  # type: ignore[return-value]


def read(model: Any) -> Decoder:
    """The parts of a model.

    Raises:
        Unlike: it has others, or lies on another device than the CPU.
    """
    base, head = getattr(model, "model", None), getattr(model, "lm_head", None)
    _need(isinstance(base, nn.Module) and type(head) is nn.Linear, "no `model` with an `lm_head`")
    assert isinstance(base, nn.Module)
    _need(_children(base, {"embed_tokens", "layers", "norm", "rotary_emb"}), "other parts than embedding, layers, norm, rotary positions")
    layers: Any = base.layers
    embed: Any = base.embed_tokens
    weights = list(model.parameters())
    _need(all(p.device.type == "cpu" for p in weights), "the weights are not in this machine's main memory")
    _need(len({p.dtype for p in weights}) == 1 and weights[0].dtype in (torch.float32, torch.bfloat16), "weights neither fp32 nor bf16")
    _need(type(embed) is nn.Embedding and len(layers) > 0, "no plain embedding")
    rope = getattr(model.config, "rope_parameters", None) or {}
    _need(rope.get("rope_type") in FIXED_ROTARY, f"rotary positions of kind {rope.get('rope_type')}")

    found = [_block(layer, model.config) for layer in layers]
    norm, eps = _gain(base.norm)  # type: ignore[arg-type]
    _need({e for _, e in found} == {eps}, "norms of several epsilons")
    first = layers[0].self_attn
    D = int(first.head_dim)
    q, k, v = first.q_proj, first.k_proj, first.v_proj
    heads, kv_heads = q.weight.shape[0] // D, k.weight.shape[0] // D
    _need(D % 2 == 0 and k.weight.shape == v.weight.shape and heads % kv_heads == 0, "heads of uneven sizes")
    shapes = {tuple(tuple(p.shape) for p in layer.parameters()) for layer in layers}
    _need(len(shapes) == 1 and len({float(layer.self_attn.scaling) for layer in layers}) == 1, "layers of several shapes")
    blocks = [block for block, _ in found]
    return Decoder(embed.weight, blocks, norm, head, base.rotary_emb, heads, kv_heads, D, eps, float(first.scaling))  # type: ignore[arg-type]


def _block(layer: nn.Module, config: Any) -> tuple[Block, float]:
    _need(_children(layer, {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}), "layers of other parts")
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    _need(_children(attention, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}), "attention of other parts")
    _need(_children(mlp, {"gate_proj", "up_proj", "down_proj", "act_fn"}), "a feed-forward of other parts")
    _need(hasattr(attention, "scaling") and hasattr(attention, "head_dim"), "attention without scaling or head_dim")
    (norm1, eps1), (norm2, eps2) = _gain(layer.input_layernorm), _gain(layer.post_attention_layernorm)  # type: ignore[arg-type]
    norms = [_gain(getattr(attention, n)) for n in ("q_norm", "k_norm") if hasattr(attention, n)]
    _need(len(norms) in (0, 2) and {e for _, e in norms} | {eps2} == {eps1}, "norms of several epsilons")
    _need(all(w.shape == (attention.head_dim,) for w, _ in norms), "norms of q and k over more than a head")
    # A layer of its own window says so; other families have one for all in their configuration.
    window = attention.sliding_window if hasattr(attention, "sliding_window") else getattr(config, "sliding_window", None)
    q, k, v, out = (_linear(attention, f"{n}_proj") for n in "qkvo")
    gate, up, down = (_linear(mlp, f"{n}_proj") for n in ("gate", "up", "down"))
    q_norm, k_norm = (norms[0][0], norms[1][0]) if norms else (None, None)
    return Block(norm1, norm2, q, k, v, out, gate, up, down, q_norm, k_norm, int(window or 0)), eps1


def probe(model: Any, window: int = 8) -> Any:
    """A copy of a model in fp32 with few of its layers: the first, the last, and one with a window, which becomes short.

    Memory: these layers, embedding and head in fp32.
    """
    layers = model.model.layers
    windows = [block.window for block in read(model).blocks]
    chosen = sorted({0, len(layers) - 1, windows.index(max(windows)), windows.index(min(windows))})
    memo: dict[int, Any] = {}
    config = copy.deepcopy(model.config, memo)
    # Found in the memo, the list of chosen layers is put where the whole list would have been copied.
    memo[id(layers)] = nn.ModuleList([copy.deepcopy(layers[i], memo) for i in chosen])
    small = copy.deepcopy(model, memo).float().eval()
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in chosen]
    if getattr(config, "sliding_window", None):
        config.sliding_window = window
    for i, layer in enumerate(small.model.layers):
        layer.self_attn.layer_idx = i
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = window
    return small
