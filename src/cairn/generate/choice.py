"""What one request's next token hangs on besides the logits: penalties, bias and constraint. Knows no batch and no model."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cairn.errors import UserError
from cairn.generate.draw import HALF, NOT_FINITE, likeliest, penalise
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
        # A greedy choice is first made freely: the constraint says yes to it as a rule, and needs no mask then.
        self.adjusts = request.sampling.adjusts or (self.matcher is not None and not request.sampling.greedy)
        """Whether the logits must be adjusted before a first choice is made and offered to `accept`."""
        self.wary = False
        """The constraint refused the last free choice: its mask is asked for before the next one is offered."""
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
        """The logits that the next token is drawn from; in float64 where there is arithmetic.

        Args:
            logits_V: as the model gave them.
            left: how many tokens the answer may still get, this one included.

        Raises:
            UserError: the constraint allows no token.
        """
        sampling = self._sampling
        if sampling.adjusts:
            logits_V = logits_V.double()
        if self._seen_V is not None:
            logits_V = penalise(logits_V, self._seen_V, torch.tensor(sampling.repetition_penalty, dtype=torch.float64))
        if self._counts_V is not None:
            logits_V = logits_V - sampling.presence_penalty * (self._counts_V > 0) - sampling.frequency_penalty * self._counts_V
        if self._bias is not None:
            logits_V = logits_V.index_add(0, *self._bias)
        allowed_V = None if self.matcher is None else self.matcher.allowed(left)
        if allowed_V is not None:
            known = min(len(allowed_V), len(logits_V))
            masked_V = torch.where(allowed_V[:known].to(logits_V.device), logits_V[:known], -torch.inf)
            if not allowed_V[:known].any():
                raise self._nothing()
            beyond = len(logits_V) - known
            logits_V = torch.cat([masked_V, masked_V.new_full((beyond,), -torch.inf)]) if beyond else masked_V
        return logits_V

    def best(self, logits_V: Tensor, left: int) -> int:
        """The likeliest id by what `adjust` gives, or `NOT_FINITE`.

        Raises:
            UserError: the constraint allows no token.
        """
        if self.matcher is None or self._sampling.adjusts or not logits_V.is_cpu:
            return likeliest([self.adjust(logits_V, left)])[0]
        free, allowed_V = likeliest([logits_V])[0], self.matcher.allowed(left)
        if allowed_V is None or free == NOT_FINITE:
            return free
        self.wary = not (free < len(allowed_V) and allowed_V[free])
        return self._best_of(allowed_V[: len(logits_V)].numpy(), logits_V) if self.wary else free

    def _best_of(self, allowed_V: NDArray[np.bool_], logits_V: Tensor) -> int:
        """The likeliest of the allowed ids: by the way that is shorter for so many."""
        logits = (logits_V.float() if logits_V.dtype in HALF else logits_V)[: len(allowed_V)].numpy()
        if np.count_nonzero(allowed_V) > len(allowed_V) // 4:
            best = int(np.where(allowed_V, logits, -np.inf).argmax())
        else:
            ids = np.flatnonzero(allowed_V)
            if not len(ids):
                raise self._nothing()
            best = int(ids[logits[ids].argmax()])
        return best if math.isfinite(logits[best]) else NOT_FINITE

    def _nothing(self) -> UserError:
        return UserError("the constraint allows no token", where=self._where, remedy="check that the constraint can be met")

    def accept(self, id: int, left: int) -> bool:
        """Take note of the id that was chosen; false where the constraint refuses it: `adjust` then leaves it out."""
        if self.matcher is not None and not self.matcher.accept(id, left):
            return False
        if self._seen_V is not None:
            self._seen_V[id] = True
        if self._counts_V is not None:
            self._counts_V[id] += 1
        return True

    def forced(self, left: int) -> int | None:
        """The id that comes next whatever the logits are, taken note of; None where they are needed."""
        forced = () if self.matcher is None or self.matcher.finished else self.matcher.forced(left)
        return forced[0] if forced and self.accept(forced[0], left) else None

    @property
    def finished(self) -> bool:
        """Whether the constraint says that the answer is complete."""
        return self.matcher is not None and self.matcher.finished


def logprob(logits_V: Tensor, id: int, top: int) -> Logprob:
    """The log-probability of an id, and of the `top` likeliest ones, under the model's own logits."""
    logprobs_V = logits_V.double().log_softmax(-1)
    values, ids = logprobs_V.topk(min(top, len(logprobs_V)))
    return Logprob(id, float(logprobs_V[id]), list(zip(ids.tolist(), values.tolist(), strict=True)))
