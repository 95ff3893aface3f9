"""A model small enough to build in every test."""

from __future__ import annotations

import pytest

from cairn.model.config import ModelConfig
from cairn.model.load import new_model


@pytest.fixture
def tiny():
    """tiny(family=…, extra=…, vocab=…, further sizes) → a random model with a vocabulary of 50, in evaluation mode."""

    def make(family="llama", extra=None, vocab=50, **sizes):
        shape = ModelConfig(
            family=family, hidden_size=32, layers=2, heads=4, intermediate_size=64, context=64, extra=extra or {}, initializer_range=0.1,
            **sizes,
        )  # fmt: skip
        return new_model(shape, vocab_size=vocab, bos_id=None, eos_id=0, pad_id=None, seed=3).eval()

    return make
