"""What a training by rewards is told, how far an answer is better than its group, and plain words for what goes wrong. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field, model_validator

from cairn.config import Config
from cairn.data.sources import Source

SAME = 1e-9
"""Rewards of a group that lie no further apart are the same: what rounding leaves must not be divided by its own spread."""


class PolicyConfig(Config):
    """Which objective a training by rewards takes.

    Every answer's tokens count alike, and the loss is divided by all tokens of the step's answers (DAPO, Yu et al. 2025): a mean per answer
    would make long wrong answers cheap.
    """

    baseline: Literal["group", "leave_one_out"] = "group"
    """What an answer's reward is compared with: the mean of its group (GRPO, Shao et al. 2024), or of the group's other answers (RLOO, Kool
    et al. 2019, Ahmadian et al. 2024)."""
    scale: Literal["spread", "none"] | None = None
    """spread: the difference is divided by the group's standard deviation (GRPO). none: it is not (Liu et al. 2025: dividing favours
    prompts that are nearly solved or hopeless). None: spread for group, none for leave_one_out."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """A token's probability ratio to the policy that answered stops counting below 1 - clip_low (PPO, Schulman et al. 2017)."""
    clip_high: float = Field(default=0.2, gt=0)
    """And above 1 + clip_high; DAPO's clip-higher takes 0.28, so that unlikely tokens may grow."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence to the model that is started from, estimated per token by k3 = e^d - d - 1 with d = log p_ref - log p
    (Schulman 2020; GRPO takes 0.04). 0 needs no reference."""

    @property
    def scaled(self) -> bool:
        """Whether advantages are divided by the group's spread."""
        return self.scale == "spread" or (self.scale is None and self.baseline == "group")


class RolloutConfig(Config):
    """How answers are asked for."""

    prompts: int = Field(default=32, ge=1)
    """Prompts of a round."""
    answers: int = Field(default=8, ge=2)
    """Answers to each, which are a group."""
    updates: int = Field(default=1, ge=1)
    """Optimiser steps that share a round's prompts out among them. More than one leaves the policy that answered, which clipping bounds."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draws; what is trained is the policy that they come from, so it divides the logits in training too."""
    unfinished: Literal["zero", "score"] = "zero"
    """The reward of an answer that was cut at max_new_tokens: 0, or what the metric says."""
    max_batch: int = Field(default=256, ge=1)
    """Answers that are generated together at most."""
    forward: Literal["auto", "compiled", "own"] = "auto"
    """What generates. own: the model's own forward. compiled: the compiled one (CPU, decoders of known structure), which holds a copy of
    the weights that is renewed before every round. auto: compiled where it runs."""

    @model_validator(mode="after")
    def _shares(self) -> RolloutConfig:
        if self.prompts % self.updates:
            raise ValueError(f"{self.prompts} prompts cannot be shared out evenly among {self.updates} updates")
        return self


class PracticeConfig(Config):
    """Rows that are learnt in every step beside the rewards, so that what the model could do before stays: PPO-ptx (InstructGPT, Ouyang et
    al. 2022). Dialogues give their answers, plain text all of its tokens, as in instruction tuning."""

    data: list[Source] = Field(min_length=1)
    """What is practised: other things than those that are rewarded, or the rewards are not what teaches them."""
    sequences: int = Field(default=4, ge=1)
    """Room for it in a step, in packs of `sequence_length` tokens."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """The mean -log p of its targets, times this, is added to the step's mean loss over the answers' tokens. The latter's gradient is that
    of log p times advantages of about 1, so at 1 both are of one size."""

    @model_validator(mode="after")
    def _plain_sources(self) -> PracticeConfig:
        names = [source.name for source in self.data]
        if len(set(names)) != len(names):
            raise ValueError("two sources of one name")
        if weighed := [source.name for source in self.data if source.loss_weight != 1.0]:
            raise ValueError(f"{weighed[0]} has a loss_weight, which a practice does not know: it has one weight for all")
        return self


def advantages(rewards: Sequence[float], config: PolicyConfig) -> list[float]:
    """How far each answer of a group is better than its baseline; zeros where all rewards are the same."""
    count, mean = len(rewards), math.fsum(rewards) / len(rewards)
    if alike(rewards):
        return [0.0] * count
    apart = [reward - mean for reward in rewards]
    if config.baseline == "leave_one_out":
        # r - mean of the others, in terms of the mean of all.
        apart = [a * count / (count - 1) for a in apart]
    if config.scaled:
        spread = math.sqrt(math.fsum(a * a for a in apart) / count)
        apart = [a / spread for a in apart]
    return apart


def alike(rewards: Sequence[float]) -> bool:
    """Whether a group has nothing to compare."""
    return max(rewards) - min(rewards) <= SAME


# -- words ------------------------------------------------------------------------------------------------------------


def _silent(means: dict[str, float], steps: int) -> str:
    if means["without_variance"] < 0.8:
        return ""
    side = "solved: train on harder ones, or stop" if means["reward"] > 0.5 else "too hard: begin with easier ones, or with more tuning"
    return f"in {means['without_variance']:.0%} of the groups all answers have the same reward, and teach nothing: the prompts are {side}"


def _cut(means: dict[str, float], steps: int) -> str:
    if means["unfinished"] < 0.2:
        return ""
    return f"{means['unfinished']:.0%} of the answers are cut at max_new_tokens: raise it, or the model learns to be short"


def _narrow(means: dict[str, float], steps: int) -> str:
    if means["entropy"] > 0.01 or means["without_variance"] >= 0.8:
        return ""
    what = f"the answers hardly vary any more (entropy {means['entropy']:.2g} nats a token)"
    return f"{what}: raise clip_high, temperature or kl, or lower the rate"


def _clipped(means: dict[str, float], steps: int) -> str:
    share = means["clipped_low"] + means["clipped_high"]
    if share < 0.3:
        return ""
    return f"{share:.0%} of the tokens are clipped: the policy leaves the one that answered too fast. Lower the rate, or take fewer updates"


def _far(means: dict[str, float], steps: int) -> str:
    if means.get("kl", 0.0) < 0.5:
        return ""
    return (
        f"the model is far from its reference (KL estimate {means['kl']:.2g} nats a token): what it learnt before may be lost. A higher kl "
        "or a lower rate keep it near"
    )


RULES: dict[str, Callable[[dict[str, float], int], str]] = {
    "groups without variance": _silent, "answers are cut": _cut, "answers hardly vary": _narrow, "tokens are clipped": _clipped,
    "far from the reference": _far,
}  # fmt: skip
