"""How many positions a model was made for. Knows configurations of transformers' families; loads nothing."""

from __future__ import annotations

from typing import Any

_NAMES = ("max_position_embeddings", "max_seq_len", "seq_length", "n_ctx")
"""Under which the families keep it."""


def context_length(config: Any) -> int | None:
    """The number of positions that a transformers configuration names, of the decoder where it has several parts; None: no bound."""
    config = config.get_text_config(decoder=True)
    for name in _NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
