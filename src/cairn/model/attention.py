"""The attention that a plain model computes with: one that keeps every rule of the family. Knows nothing of packing's backends.

torch's scaled-dot-product attention has no soft cap. Some releases of transformers choose it for families that have one (Gemma 2 is
the best known) and drop the cap without a word: packed training, which keeps it, would then differ from generation and evaluation.
"""

from __future__ import annotations

from typing import Any

import torch

from cairn.model.packing.check import CAPS, agree, narrowed, states_alone

TOKENS = 8
"""Tokens of the row that is tried; attention of one token says nothing about scores."""


def keep_caps(model: Any) -> Any:
    """Give `model` its family's own attention in plain torch where another one would drop its soft cap; the model itself.

    Whether it does is seen in the numbers, with the cap narrowed. A model without a cap is not tried and keeps what it has.
    """
    plain = model.config._attn_implementation
    if plain != "sdpa" or not has_cap(model):
        return model
    training = model.training
    vocab = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(TOKENS, device=next(model.parameters()).device) * 5 % vocab
    model.eval()  # two draws of dropout would differ as well
    with torch.no_grad(), narrowed(model):
        try:
            found = states_alone(model, ids)
        except ValueError:
            found = None  # newer releases refuse the cap at the first call
        model.set_attn_implementation("eager")
        wanted = states_alone(model, ids)
    if found is not None and agree(found, wanted):
        model.set_attn_implementation(plain)
    return model.train(training)


def has_cap(model: Any) -> bool:
    """Whether a configuration or a layer of the model names a soft cap of attention's scores."""
    holders = [*model.modules(), *(m.config for m in model.modules() if hasattr(m, "config"))]
    return any(isinstance(vars(holder).get(name), (int, float)) for holder in holders for name in CAPS)
