"""A model that says what a test wants, whatever it is asked: the engine runs it as any model without a cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import transformers


class Scripted(torch.nn.Module):
    """Says the ids of `script` one by one, and begins again with each new prompt.

    Args:
        script: the ids to say.
        vocab: size of the vocabulary.
        special: ids that no answer goes on with: one of them behind what came last makes a new prompt.
        context: longest sequence that it takes.
    """

    def __init__(self, script: Sequence[int], vocab: int, special: Collection[int], context: int = 4096) -> None:
        super().__init__()
        self.script, self.special = list(script), set(special)
        self.config = transformers.LlamaConfig(vocab_size=vocab, max_position_embeddings=context)
        self.embedding = torch.nn.Embedding(vocab, 1)
        self.device = torch.device("cpu")
        self.begun = 0
        self.before: list[int] = []

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def is_new(self, ids: list[int]) -> bool:
        """Whether this is a new prompt. Of a constrained answer several ids may come at once."""
        many = len(self.before)
        return not many or len(ids) <= many or ids[:many] != self.before or not self.special.isdisjoint(ids[many:])

    def forward(self, input_ids: torch.Tensor, use_cache: bool, return_dict: bool) -> Any:
        ids = input_ids[0].tolist()
        if self.is_new(ids):
            self.begun = len(ids)
        self.before = ids
        logits = torch.zeros(*input_ids.shape, self.embedding.num_embeddings)
        logits[..., self.script[input_ids.shape[1] - self.begun]] = 9.0
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)
