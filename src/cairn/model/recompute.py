"""Activation checkpointing by block: what a block computes is computed again in the backward instead of kept. Knows a model's blocks.

The numbers are the same bits: a block is a function of its input, and what an adapter's dropout draws is drawn again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from cairn.errors import UserError
from cairn.model.cost import Dimensions
from cairn.model.nf4 import count_weights


def blocks_of(model: Any) -> list[Any]:
    """The transformer blocks of a causal LM: the list of `num_hidden_layers` modules in its body.

    Raises:
        UserError: it has no such list.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"the blocks of '{model.config.model_type}' were not found", where="memory",
        remedy="use sharding: replicate and activation_checkpointing: off",
    )  # fmt: skip


def recompute(model: Any, count: int) -> None:
    """Let the first `count` blocks compute their activations again. The first keep theirs longest, so they are worth most."""
    for block in blocks_of(model)[:count] if count else []:
        # Around `forward` and not around the call: hooks on the module (FSDP gathers its weights there) run once, outside.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def keep_all(model: Any) -> None:
    """Give such blocks their own forward back."""
    for module in model.modules():
        own = vars(module).get("forward")
        if isinstance(own, functools.partial) and own.func is checkpoint:
            del module.forward


def has_sizes(config: Any) -> bool:
    """Whether a transformers configuration has the sizes of a decoder with attention."""
    config = config.get_text_config()
    return all(getattr(config, name, None) for name in ("num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size"))


def dimensions_of(model: Any) -> Dimensions:
    """The sizes of a loaded model that its cost depends on.

    Raises:
        UserError: it has no attention, which the calculator is about.
    """
    if not has_sizes(model.config):
        raise UserError(
            f"how much memory the family '{model.config.model_type}' takes is not known here", where="memory",
            remedy="leave budget_gb out",
        )  # fmt: skip
    inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    return dimensions_of_config(
        model.config, vocabulary=int(inputs.shape[0]), tied=head is None or head.weight is inputs,
        parameters=count_weights(model),
    )  # fmt: skip


def dimensions_of_config(config: Any, *, vocabulary: int, tied: bool, parameters: int) -> Dimensions:
    """The same of a model that is not loaded, out of its transformers configuration."""
    config = config.get_text_config()
    heads, hidden = int(config.num_attention_heads), int(config.hidden_size)
    return Dimensions(
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(getattr(config, "head_dim", None) or hidden // heads),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * hidden),
        vocabulary=vocabulary,
        tied=tied,
        parameters=parameters,
    )
