"""Which questions are alike: texts to vectors, by a model's hidden states. Knows models; keeps nothing, and decides nothing.

Vectors find a candidate for an answer; whether it is one the served model says itself (`Memory`). They alone would not do: a question's
likest neighbour asks for another country's capital.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from cairn.model.context import context_length
from cairn.tokenizer.load import Tokenizer

LONGEST = 512
"""Tokens of a text that its vector is made of: the last ones."""


class Embedder:
    """Texts to vectors: the mean of a model's last hidden states over the text, their common part taken off, scaled to length 1.

    Hidden states of any two texts point nearly the same way (Ethayarajh 2019); the common part is the mean over texts of
    pseudo-random tokens.

    Args:
        model: a transformers causal LM, or any model whose output has `last_hidden_state`.
        tokenizer: its own.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self._body, self._tokenizer = getattr(model, "base_model", model), tokenizer
        self._longest = min(LONGEST, context_length(model.config) or LONGEST)
        self._lock = Lock()
        probes = [[(7 + 2654435761 * (i + 97 * k)) % tokenizer.vocab_size for i in range(16)] for k in range(8)]
        self._common_H = torch.stack([self._mean(ids) for ids in probes]).mean(0)

    def __call__(self, text: str) -> Tensor | None:
        """The vector of a text; None of one without a token."""
        ids = self._tokenizer.encode(text)[-self._longest :]
        if not ids:
            return None
        with self._lock:
            return torch.nn.functional.normalize(self._mean(ids) - self._common_H, dim=0)

    def _mean(self, ids: Sequence[int]) -> Tensor:
        device = next(self._body.parameters()).device
        with torch.inference_mode():
            hidden_1TH = self._body(input_ids=torch.tensor([list(ids)], device=device)).last_hidden_state
            return hidden_1TH[0].float().mean(0).cpu()
