"""What a merge of models is told. Knows nothing of torch, so that a recipe is checked without loading it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cairn.config import Config

ABOUT_A_BASE = ("task_arithmetic", "ties", "dare", "dare_ties", "liti")
"""Methods that merge what training has changed in a base."""


class MergeConfig(Config):
    """How several models of one architecture become one. Their weights stand with them; formulas and sources in model/merging.py."""

    method: Literal["linear", "slerp", "task_arithmetic", "ties", "dare", "dare_ties", "liti"]
    """linear: the weighted mean. slerp: between two models along the sphere. With a base: task_arithmetic adds up changes; ties first trims
    them and settles on signs; dare drops changes by chance and enlarges the rest; dare_ties does that and settles on signs; liti goes
    from the base towards one model."""
    density: float | None = Field(default=None, gt=0, le=1)
    """ties: share of each tensor's changes that stays, the largest ones. dare: share that stays by chance. None: 0.2."""
    scale: float | None = Field(default=None, gt=0)
    """What the merged change is multiplied with before it is added to the base. None: 1; for liti 0.5, half of the way."""

    @model_validator(mode="after")
    def _fits_method(self) -> MergeConfig:
        if self.density is not None and self.method not in ("ties", "dare", "dare_ties"):
            raise ValueError(f"{self.method} has no density; ties, dare and dare_ties have it")
        if self.scale is not None and self.method not in ABOUT_A_BASE:
            raise ValueError(f"{self.method} has no scale: it is about the models alone, without a base")
        return self

    def check_models(self, weights: list[float], *, base: bool) -> None:
        """See that the method can take so many models.

        Args:
            weights: of each model.
            base: whether there is a base.

        Raises:
            ValueError: it cannot.
        """
        wanted = {"slerp": 2, "liti": 1}.get(self.method)
        if wanted is not None and len(weights) != wanted:
            raise ValueError(f"{self.method} takes {wanted} model{'s' if wanted > 1 else ''}, not {len(weights)}")
        if self.method in ABOUT_A_BASE and not base:
            raise ValueError(f"{self.method} merges what training has changed: give the base")
        if self.method == "linear" and base:
            raise ValueError("linear knows no base: give it as one of the models, or take task_arithmetic or liti")
        if self.method == "linear" and len(weights) < 2:
            raise ValueError("linear takes at least 2 models")
        if self.method in ("linear", "slerp") and (min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"the weights of {self.method} are shares: none below 0, and not all 0")
        if self.method in ("ties", "dare_ties") and min(weights) <= 0:
            raise ValueError(f"{self.method} takes means of changes: their weights are above 0; task_arithmetic takes a change away")
        if self.method == "liti" and weights != [1.0]:
            raise ValueError("liti has one model; how far it goes is its scale, not a weight")
