"""What one request's next token hangs on besides the logits: penalties, bias and constraint. Knows no batch and no model."""

from __future__ import annotations

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.generate.draw import penalise
from cairn.generate.matcher import Matcher
from cairn.generate.request import Logprob, Request


class Choice:
    """The state of one answer's choices.

    Args:
        request: whose answer it is.
        vocab: ids from here on are never chosen.
        device: where the logits are.
    """

    def __init__(self, request: Request, vocab: int, device: torch.device | str = "cpu") -> None:
        self._sampling, self._where = request.sampling, f"request {request.index}"
        self.matcher: Matcher | None = None if request.constraint is None else request.constraint()
        self.adjusts = request.sampling.adjusts or self.matcher is not None
        sampling = request.sampling
        self._seen_V: Tensor | None = None
        self._counts_V: Tensor | None = None
        self._bias: tuple[Tensor, Tensor] | None = None
        if sampling.repetition_penalty != 1.0:
            self._seen_V = torch.zeros(vocab, dtype=torch.bool, device=device)
            self._seen_V[torch.tensor([i for i in request.ids if i < vocab], dtype=torch.long, device=device)] = True
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._counts_V = torch.zeros(vocab, dtype=torch.float64, device=device)
        if sampling.logit_bias:
            ids = [i for i in sampling.logit_bias if 0 <= i < vocab]
            values = [sampling.logit_bias[i] for i in ids]
            self._bias = (torch.tensor(ids, dtype=torch.long, device=device), torch.tensor(values, dtype=torch.float64, device=device))

    def adjust(self, logits_V: Tensor, left: int) -> Tensor:
        """The logits that the next token is drawn from, in float64.

        Args:
            logits_V: as the model gave them.
            left: how many tokens the answer may still get, this one included.

        Raises:
            UserError: the constraint allows no token.
        """
        logits_V = logits_V.double()
        sampling = self._sampling
        if self._seen_V is not None:
            logits_V = penalise(logits_V, self._seen_V, torch.tensor(sampling.repetition_penalty, dtype=torch.float64))
        if self._counts_V is not None:
            logits_V = logits_V - sampling.presence_penalty * (self._counts_V > 0) - sampling.frequency_penalty * self._counts_V
        if self._bias is not None:
            logits_V = logits_V.index_add(0, *self._bias)
        allowed_V = None if self.matcher is None else self.matcher.allowed(left)
        if allowed_V is not None:
            known = min(len(allowed_V), len(logits_V))
            masked_V = torch.full_like(logits_V, -torch.inf)
            masked_V[:known] = torch.where(allowed_V[:known].to(logits_V.device), logits_V[:known], -torch.inf)
            if not allowed_V[:known].any():
                raise UserError("the constraint allows no token", where=self._where, remedy="check that the constraint can be met")
            logits_V = masked_V
        return logits_V

    def accept(self, id: int) -> bool:
        """Take note of the id that was chosen; false where the constraint refuses it: `adjust` then leaves it out."""
        if self.matcher is not None and not self.matcher.accept(id):
            return False
        if self._seen_V is not None:
            self._seen_V[id] = True
        if self._counts_V is not None:
            self._counts_V[id] += 1
        return True

    @property
    def finished(self) -> bool:
        """Whether the constraint says that the answer is complete."""
        return self.matcher is not None and self.matcher.finished


def logprob(logits_V: Tensor, id: int, top: int) -> Logprob:
    """The log-probability of an id, and of the `top` likeliest ones, under the model's own logits."""
    logprobs_V = logits_V.double().log_softmax(-1)
    values, ids = logprobs_V.topk(min(top, len(logprobs_V)))
    return Logprob(id, float(logprobs_V[id]), list(zip(ids.tolist(), values.tolist(), strict=True)))
