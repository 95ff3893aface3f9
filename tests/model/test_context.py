"""The context that configurations name."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from cairn.model.context import context_length


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (transformers.LlamaConfig(max_position_embeddings=512), 512),
        (transformers.GPT2Config(n_positions=300), 300),
        (transformers.MptConfig(max_seq_len=77), 77),
        (transformers.BloomConfig(seq_length=99), 99),
        (transformers.MambaConfig(), None),
        (transformers.Gemma3Config(text_config={"max_position_embeddings": 640}), 640),
    ],
)
def test_each_family_keeps_it_elsewhere(config: Any, length: int | None) -> None:
    assert context_length(config) == length
