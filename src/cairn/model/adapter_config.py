"""What an adapter is told. Knows nothing of peft or torch, so that a recipe is checked without loading either."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cairn.config import Config


class AdapterConfig(Config):
    """A few weights that are trained beside a frozen base."""

    kind: Literal["lora", "rslora", "dora", "ia3"] = "lora"
    """lora: low-rank products beside the matrices (Hu et al. 2021). rslora: those scaled by alpha / sqrt(rank), for high ranks
    (Kalajdzievski 2023). dora: direction and length apart (Liu et al. 2024). ia3: one factor per output of a matrix (Liu et al. 2022)."""
    rank: int = Field(default=16, gt=0)
    """Width of the low-rank products; not for ia3."""
    alpha: int = Field(default=32, gt=0)
    """The product is scaled by alpha / rank (rslora: alpha / sqrt(rank)); not for ia3."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a low-rank product's inputs that are dropped in training; a function of seed, step and micro-batch. Not for ia3."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Which matrices: every one inside the blocks, or the last parts of their names, such as [q_proj, v_proj]."""
    train: list[Literal["embeddings", "head"]] = Field(default_factory=list)
    """What is trained whole and saved with the adapter. A tied embedding is both. Needed where the tokenizer has ids that the base lacks;
    their rows start as the mean of the old ones."""
    base: Literal["full", "nf4"] = "full"
    """How the frozen base is held. full: at the training's `precision`. nf4: its matrices in 4 bits (QLoRA, Dettmers et al. 2023), about
    4.3 bits a weight; the merged model is then that of the rounded base, which is what the adapter was trained on."""
    merge: bool = True
    """Write the merged model as well, after its logits were compared with those of the adapter on its base."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> AdapterConfig:
        # Against the defaults, for a record holds every key.
        given = [key for key in ("rank", "alpha", "dropout") if getattr(self, key) != type(self).model_fields[key].default]
        if self.kind == "ia3" and given:
            raise ValueError(f"ia3 has no {given[0]}: it is one factor per output")
        if not self.targets:
            raise ValueError("targets names no matrix")
        if len(set(self.train)) != len(self.train):
            raise ValueError("train names one thing twice")
        return self


MODEL_FILES = ("model/config.json", "adapter/adapter_config.json")
"""What tells the two places of a model in a train artifact: whole, or an adapter alone."""


def model_place(artifact: Path) -> Path:
    """Where the model of a train artifact lies: `model/`, or `adapter/` where that is all there is."""
    unmerged = not (artifact / "model").is_dir() and (artifact / "adapter").is_dir()
    return artifact / ("adapter" if unmerged else "model")
