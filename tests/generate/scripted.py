"""A model that says what a test wants, whatever it is asked: the engine runs it as any model without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers


class Scripted(torch.nn.Module):
    """Says the ids of `script` one by one, and begins again with each new prompt.

    Args:
        script: the ids to say.
        vocab: size of the vocabulary.
        context: longest sequence that it takes.
    """

    def __init__(self, script: Sequence[int], vocab: int, context: int = 4096) -> None:
        super().__init__()
        self.script = list(script)
        self.config = transformers.LlamaConfig(vocab_size=vocab, max_position_embeddings=context)
        self.embedding = torch.nn.Embedding(vocab, 1)
        self.device = torch.device("cpu")
        self.begun = 0
        self.before = 0

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, use_cache: bool, return_dict: bool) -> Any:
        if input_ids.shape[1] != self.before + 1:
            self.begun = input_ids.shape[1]
        self.before = input_ids.shape[1]
        logits = torch.zeros(*input_ids.shape, self.embedding.num_embeddings)
        logits[..., self.script[input_ids.shape[1] - self.begun]] = 9.0
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)
