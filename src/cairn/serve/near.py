"""Whether an answer that was given to a like question is the answer to this one. Knows models and vectors; keeps nothing.

Vectors find a candidate, the served model decides: one pass over the new prompt and the candidate's tokens shows whether the model
would have chosen every one of them. Vectors alone would not do: a question's likest neighbour asks for another country's capital.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from cairn.model.context import context_length
from cairn.tokenizer.load import Tokenizer

MARGIN = 0.05
"""By how much, in nats, each token must beat the next: rounding must not decide. In bf16, ten times as much."""
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


class Judge:
    """Says whether a model would have given an answer.

    Args:
        model: the served model; its weights as they are.
        vocab: ids from here on are never chosen.
    """

    def __init__(self, model: Any, vocab: int) -> None:
        self._model, self._vocab = model, vocab
        self._margin = MARGIN * (1 if next(model.parameters()).dtype == torch.float32 else 10)
        self._lock = Lock()

    def would_say(self, prompt: Sequence[int], ids: Sequence[int]) -> bool:
        """Whether every id is the model's clear choice behind the prompt and the ids before it."""
        context = context_length(self._model.config)
        if not prompt or not ids or (context is not None and len(prompt) + len(ids) - 1 > context):
            return False
        device = next(self._model.parameters()).device
        given_1T = torch.tensor([[*prompt, *ids[:-1]]], device=device)
        with self._lock, torch.inference_mode():
            logits_TV = self._model(input_ids=given_1T, use_cache=False, logits_to_keep=len(ids)).logits[0, -len(ids) :, : self._vocab]
            two = logits_TV.float().topk(2)
        chosen = two.indices[:, 0].cpu() == torch.tensor(list(ids))
        return bool((chosen & ((two.values[:, 0] - two.values[:, 1]).cpu() >= self._margin)).all())
