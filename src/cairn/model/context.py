"""How many positions a model was made for. Knows configurations of transformers' families; loads nothing."""

from __future__ import annotations

from typing import Any

from cairn.errors import UserError

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


def check_length(config: Any, sequence_length: int) -> None:
    """`check_positions` for a transformers configuration."""
    check_positions(context_length(config), sequence_length)


def check_positions(longest: int | None, sequence_length: int) -> None:
    """See that documents of so many tokens fit into a model's positions; None where these are not known, or have no end.

    Raises:
        UserError: they do not: the model would fail at an index, or be asked about places that it never learnt.
    """
    if longest is not None and sequence_length > longest:
        what = f"sequence_length ({sequence_length}) is longer than the model's {longest} positions"
        raise UserError(what, where="sequence_length", remedy=f"set it to {longest} or less")
