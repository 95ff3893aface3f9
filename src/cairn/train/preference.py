"""What a preference or a reward training is told, and the plain words for what goes wrong in one. Torch-free; knows no model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from cairn.config import Config

REFERENCE_FREE = ("orpo", "simpo")
WINDOW = 20
"""Steps whose mean a warning is about."""


class PreferenceConfig(Config):
    """Which loss a preference training takes. A prompt counts once, however many answers it has: its loss is the mean over its pairs."""

    loss: Literal["dpo", "ipo", "hinge", "robust", "kto", "orpo", "simpo"] = "dpo"
    """dpo (Rafailov et al. 2023), ipo (Azar et al. 2023), hinge (SLiC, Zhao et al. 2023), robust (Chowdhury et al. 2024: dpo under noisy
    labels), kto (Ethayarajh et al. 2024: each answer by itself against the step's mean), orpo (Hong et al. 2024) and simpo (Meng et al.
    2024), which need no reference."""
    beta: float | None = Field(default=None, gt=0)
    """What the log ratio is multiplied with to be a reward. None: 0.1; for simpo 2.0."""
    length_normalised: bool | None = None
    """Divide an answer's log-probability by the number of its tokens. None: as the loss's authors do, yes for ipo, orpo and simpo."""
    pairs: Literal["best", "all"] = "best"
    """Of more than two ranked answers. best: the first against each other one. all: every one against each below it."""
    smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """The share of labels that are taken to be the wrong way round, for dpo (conservative dpo, Mitchell 2023) and robust."""
    gap: float = Field(default=0.5, ge=0)
    """simpo: the margin that the chosen answer's reward is to be ahead by."""
    sft: float | None = Field(default=None, ge=0)
    """How much of the chosen answer's mean −log p is added to the loss. None: 0; for orpo 1, as in its paper."""

    @model_validator(mode="after")
    def _fits_loss(self) -> PreferenceConfig:
        if self.smoothing and self.loss not in ("dpo", "robust"):
            raise ValueError(f"{self.loss} has no smoothing; dpo and robust have it")
        if self.loss == "robust" and not self.smoothing:
            raise ValueError("robust without smoothing is dpo: give smoothing, the share of labels that may be wrong")
        # Against the default, for a record holds every key.
        if self.gap != type(self).model_fields["gap"].default and self.loss != "simpo":
            raise ValueError(f"{self.loss} has no gap; simpo has it")
        if self.length_normalised is False and self.loss == "orpo":
            raise ValueError("orpo's odds are those of a mean token: it is always length_normalised")
        return self

    @property
    def needs_reference(self) -> bool:
        return self.loss not in REFERENCE_FREE

    @property
    def scale(self) -> float:
        """`beta`, or the loss's own."""
        return self.beta if self.beta is not None else 2.0 if self.loss == "simpo" else 0.1

    @property
    def normalised(self) -> bool:
        """`length_normalised`, or the loss's own."""
        return self.length_normalised if self.length_normalised is not None else self.loss in (*REFERENCE_FREE, "ipo")

    @property
    def likelihood(self) -> float:
        """`sft`, or the loss's own."""
        return self.sft if self.sft is not None else 1.0 if self.loss == "orpo" else 0.0

    @property
    def mismatched(self) -> bool:
        """Whether documents carry an answer that is not theirs."""
        return self.loss == "kto"


class RewardConfig(Config):
    """How a reward model is trained from comparisons."""

    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """bradley_terry: every pair of a prompt's answers (Ouyang et al. 2022), the mean of them. plackett_luce: the likelihood of the whole
    ranking (Zhu et al. 2023, K-wise), a mean over its choices; of two answers both are the same."""
    margin: float | Literal["rows"] = 0.0
    """What the better answer's reward is to be ahead by in a pair (Llama 2): a number, or each row's own `meta.margin`."""
    centre: float = Field(default=0.0, ge=0)
    """How much of (a + b)² is added, of the rewards a and b of a pair, a mean over a prompt's pairs (Eisenstein et al. 2023): only
    differences of rewards are learnt, and this keeps their mean near zero without holding them together."""

    @model_validator(mode="after")
    def _fits_loss(self) -> RewardConfig:
        if self.margin != "rows" and not (math.isfinite(float(self.margin)) and float(self.margin) >= 0):
            raise ValueError(f"a margin is a number of at least 0, not {self.margin}")
        if self.loss == "plackett_luce" and self.margin != 0:
            raise ValueError("plackett_luce knows no margin; bradley_terry does")
        return self


# -- words ------------------------------------------------------------------------------------------------------------


Rules = Mapping[str, Callable[[dict[str, float], int], str]]
"""Name: (means over the last steps, number of steps) → what is to be said, or nothing."""


class Adviser:
    """Tells from the figures of steps what goes wrong, each thing once. A function of the lines that it is shown."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.recent: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.steps = 0
        self.told: list[dict[str, Any]] = []

    def see(self, figures: dict[str, float]) -> list[str]:
        """Take in a step's figures; what is to be said now."""
        self.steps += 1
        self.recent.append(figures)
        if len(self.recent) < WINDOW:
            return []
        known = {one["what"] for one in self.told}
        found = {name: text for name, rule in self.rules.items() if name not in known and (text := rule(self._means(), self.steps))}
        self.told += [{"what": name, "step": self.steps, "text": text} for name, text in found.items()]
        return list(found.values())

    def _means(self) -> dict[str, float]:
        return {name: sum(one.get(name, 0.0) for one in self.recent) / len(self.recent) for name in self.recent[-1]}


def _falling(means: dict[str, float], steps: int) -> str:
    chosen, rejected = means.get("log_ratio_chosen", 0.0), means.get("log_ratio_rejected", 0.0)
    if chosen > -0.02 * abs(means.get("logp_chosen", 0.0)) or rejected >= chosen:
        return ""
    return (
        f"the chosen answers become less likely together with the rejected ones (by {-chosen:.1f} and {-rejected:.1f} nats an answer): the "
        "model moves to answers that nobody compared. A higher beta, a lower rate or sft: 0.1 hold it"
    )


def _flat(means: dict[str, float], steps: int) -> str:
    nothing = abs(means["margin"]) + means["margin_spread"] < 0.01
    chance = abs(means["margin"]) < 0.1 * means["margin_spread"] and abs(means["accuracy"] - 0.5) < 0.1
    if steps < 3 * WINDOW or not (nothing or chance):
        return ""
    return (
        f"after {steps} steps the margin is at zero ({means['margin']:.2g}, accuracy {means['accuracy']:.2f}): chosen and rejected answers "
        "are not told apart. Raise the rate, or look whether the rows' order means anything"
    )


def _longer(means: dict[str, float], steps: int) -> str:
    if means["length_chosen"] <= means["length_rejected"] or means["margin_length_correlation"] < 0.5:
        return ""
    return (
        f"the margin goes with the length of the answers (correlation {means['margin_length_correlation']:.2f}; chosen "
        f"{means['length_chosen']:.0f}, rejected {means['length_rejected']:.0f} tokens): answers "
        "will grow. length_normalised: true, or pairs of like length, avoid that"
    )


def _far(means: dict[str, float], steps: int) -> str:
    if means.get("kl", 0.0) < 50.0:
        return ""
    return (
        f"the model is far from its reference (KL estimate {means['kl']:.0f} nats an answer): what it learnt before may be lost. A higher "
        "beta or a lower rate keep it near"
    )


RULES: Rules = {"chosen falls": _falling, "margin at zero": _flat, "length grows": _longer, "far from the reference": _far}
