"""The context that configurations name."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from cairn.errors import UserError
from cairn.model.context import check_length, context_length


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


def test_documents_longer_than_the_positions_are_refused() -> None:
    config = transformers.GPT2Config(n_positions=300)
    check_length(config, 300)
    check_length(transformers.MambaConfig(), 10**6)
    with pytest.raises(UserError, match="longer than the model's 300 positions"):
        check_length(config, 301)
