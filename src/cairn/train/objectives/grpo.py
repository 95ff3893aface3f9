"""Training by rewards: answers that were better than their group become likelier, by `PolicyConfig`; beside them, rows to practise. Knows
batches; no metric.

What each answer was worth, and how likely its tokens were before, stands in the groups of the step (`train/rollouts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.model.head import Head, cross_entropy, head_of, log_probabilities
from cairn.train.config import Training
from cairn.train.forward import TorchBatch, hidden_states
from cairn.train.objectives import Base, Loss
from cairn.train.policy import RULES, PolicyConfig

if TYPE_CHECKING:
    from cairn.train.rollouts import Group


class Objective(Base):
    """PPO's clipped surrogate with a group's advantages, and k3 to a reference; summed over tokens."""

    targets: Literal["all", "mask", "answers"] = "answers"
    rules = RULES

    def __init__(self, training: Training | None = None) -> None:
        self.config, self.temperature = PolicyConfig(), 1.0
        """As the stream of rollouts says, when it is bound to the training."""
        self.groups: Mapping[int, Group] = {}
        """Those of the step, by the number of their document; those without variance too, which may be in no batch."""
        self.practice, self.practised = 0.0, 0
        """How much the mean over practised targets counts, and how many the step has: those of documents without answers."""
        self._rehearsal = False

    def count(self, batch: Any) -> int:
        """All tokens of the step's answers, in whatever groups."""
        return sum(len(answer.ids) for group in self.groups.values() for answer in group.answers)

    def loss(self, model: Any, batch: TorchBatch) -> Loss:
        h_ND = hidden_states(model, batch).index_select(0, batch.predict_N)
        if all(batch.answers):
            return self._rewarded(model, batch, h_ND, batch.targets_N)
        answered_D = torch.tensor([bool(answers) for answers in batch.answers], device=h_ND.device)
        own, rest = (where_N.nonzero()[:, 0] for where_N in (answered_D[batch.document_N], ~answered_D[batch.document_N]))
        loss = self._rewarded(model, batch, h_ND[own], batch.targets_N[own])
        nll, _ = cross_entropy(h_ND[rest], batch.targets_N[rest], head_of(model))
        # The loop divides by the answers' tokens; a mean over the practised targets is meant.
        total = loss.total + nll * (self.practice * self.count(None) / self.practised)
        return Loss(total, loss.count, loss.metrics | {"practice": float(nll.detach())})

    def _rewarded(self, model: Any, batch: TorchBatch, h_ND: Tensor, targets_N: Tensor) -> Loss:
        """The loss over the answers' tokens, given the hidden states before them."""
        config = self.config
        logp_N = log_probabilities(h_ND, targets_N, self.policy_head(model))
        seen_N = logp_N.detach()
        advantage_N = self._of(batch, "advantages", logp_N)
        # One step a round: the policy that answered is this one, whose ratio is 1 and whose gradient is that of log p.
        old_N = self._of(batch, "logp", logp_N) if self._measured("logp") else seen_N
        ratio_N = torch.exp(logp_N - old_N)
        bounded_N = ratio_N.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
        total = -torch.minimum(ratio_N * advantage_N, bounded_N * advantage_N).sum()
        moved_N = ratio_N.detach()
        sums = {
            "tokens": float(len(seen_N)), "entropy": float(-seen_N.sum()),
            "clipped_low": float(((moved_N < 1.0 - config.clip_low) & (advantage_N < 0)).sum()),
            "clipped_high": float(((moved_N > 1.0 + config.clip_high) & (advantage_N > 0)).sum()),
        }  # fmt: skip
        if config.kl:
            apart_N = self._of(batch, "reference", logp_N) - logp_N
            k3_N = torch.exp(apart_N) - apart_N - 1.0
            total = total + config.kl * k3_N.sum()
            sums["kl"] = float(k3_N.detach().sum())
        return Loss(total, len(seen_N), metrics=sums)

    def log_probabilities(self, model: Any, batch: TorchBatch) -> Tensor:
        """log p of each target under the policy that draws: the model's logits divided by the temperature. Nats, fp32."""
        h = hidden_states(model, batch)
        return log_probabilities(h.index_select(0, batch.predict_N), batch.targets_N, self.policy_head(model))

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """Means over the tokens that were computed (practice: over the practised targets), and what the step's answers were like."""
        tokens = sums["tokens"]
        means = {name: value / tokens for name, value in sums.items() if name not in ("tokens", "practice")}
        if "practice" in sums:
            means["practice"] = sums["practice"] / self.practised
        groups = list(self.groups.values())
        answers = [answer for group in groups for answer in group.answers]
        rewards = [answer.reward for answer in answers]
        return {
            "reward": sum(rewards) / len(rewards), "without_variance": sum(group.alike for group in groups) / len(groups),
            "groups": len(groups), "length": sum(len(answer.ids) for answer in answers) / len(answers),
            "unfinished": sum(answer.reason == "length" for answer in answers) / len(answers), **means,
        }  # fmt: skip

    @contextmanager
    def rehearsing(self, documents: Sequence[Any]) -> Iterator[None]:
        """Documents that nobody answered have zeros for everything."""
        self._rehearsal = True
        yield
        self._rehearsal = False

    def _measured(self, what: str) -> bool:
        return not self._rehearsal and any(getattr(group, what) is not None for group in self.groups.values())

    def _of(self, batch: TorchBatch, what: str, like_N: Tensor) -> Tensor:
        """A number of each target, from its group: one an answer is that of all its tokens."""
        if self._rehearsal:
            return torch.zeros_like(like_N)
        found = [np.zeros(0, np.float32)]
        for (_, number), answers in zip(batch.origins, batch.answers, strict=True):
            if not answers:
                continue
            values = np.asarray(getattr(self.groups[number], what), np.float32)
            found.append(np.repeat(values, answers) if what == "advantages" else values)
        return torch.from_numpy(np.concatenate(found)).to(like_N.device)

    def policy_head(self, model: Any) -> Head:
        """The head of the policy that draws.

        Raises:
            UserError: the model caps its logits, and the temperature is not 1.
        """
        head = head_of(model)
        if self.temperature == 1.0:
            return head
        if head.softcap is not None:
            what = "the model caps its logits, and they cannot be divided by a temperature behind that here"
            raise UserError(what, where="rollouts.temperature", remedy="set it to 1")
        return replace(head, scale=head.scale / self.temperature)
