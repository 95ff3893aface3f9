"""What a training run is told. Knows the model's and the data's configuration; nothing of how a step is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cairn.config import Config, checked
from cairn.errors import UserError, did_you_mean


def check_objective(name: str) -> None:
    """Raises:
    UserError: train/objectives has no file of that name. The files are not imported, since they bring torch.
    """
    known = {path.stem for path in (Path(__file__).parent / "objectives").glob("*.py") if not path.stem.startswith("_")}
    if name not in known:
        raise UserError(f"unknown objective '{name}'", remedy=did_you_mean(name, known))

COMPILE_FLOPS = 3e13
"""Training work from which compiling pays: some 15 s of compiling against a fifth of about 100 s (docs/experiments.md)."""


class OptimizerConfig(Config):
    """How weights move."""

    kind: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices of the blocks, AdamW for the rest. adamw: AdamW for all."""
    lr: float = Field(default=0.02, gt=0)
    """Peak rate of Muon, or of AdamW where that is all there is."""
    adam_lr: float = Field(default=0.003, gt=0)
    """With muon: peak rate of AdamW (embeddings, head, norms, biases)."""
    embedding_lr: float | None = Field(default=None, gt=0)
    """Peak rate of the input embedding, if another one; a tied embedding is the head too and keeps AdamW's."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of matrices; norms and biases never decay."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's momentum."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averages."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""


class ScheduleConfig(Config):
    """How the rate runs over the steps, as a factor of its peak."""

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """wsd: warm-up, stable, linear decay (MiniCPM). cosine and linear: warm-up, then decay to `final` at the end."""
    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Share of the steps that warm up."""
    decay: float = Field(default=0.3, gt=0, le=1)
    """wsd: share of the steps that decay, at the end."""
    final: float = Field(default=0.0, ge=0, le=1)
    """The last factor."""


class CheckpointConfig(Config):
    """Intermediate checkpoints that stay in the artifact (weights and optimiser state)."""

    every: int = Field(default=0, ge=0)
    """Steps between two; 0 keeps none. They are needed by `verify --interval`."""
    keep: int = Field(default=0, ge=0)
    """How many of them stay: the latest so many; 0 for all."""
    resume_seconds: float = Field(default=20.0, gt=0)
    """Time between two resume points, which a killed run goes on from and a finished one deletes."""


class Training(Config):
    """Everything about training but where model, tokenizer and rows come from."""

    objective: Annotated[str, checked(check_objective)] = "supervised"
    """A file of train/objectives: language_model (every token is a target), supervised (the assistant's tokens are)."""
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps. Give this or `tokens`."""
    tokens: int | None = Field(default=None, gt=0)
    """Tokens to see, rounded up to a whole step."""
    sequence_length: int = Field(default=512, gt=0)
    """Longest document, and capacity of a pack, in tokens."""
    batch_sequences: int = Field(default=16, gt=0)
    """Packs in a micro-batch."""
    accumulate: int = Field(default=1, gt=0)
    """Micro-batches in a step; the loss is normalised by the supervised tokens of them all."""
    overlong: Literal["truncate", "drop", "split"] = "truncate"
    """A row longer than `sequence_length`: truncate (a dialogue at a turn's border, a text split), drop, or split (texts only). Counted."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 switches clipping off."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: forward and backward in bf16 with fp32 master weights, cast once a step."""
    attention: Literal["auto", "varlen", "flex", "buckets"] = "auto"
    """How packed documents attend. auto: the fastest that this machine and the model's heads allow. varlen: FlashAttention; flex: flex
    attention (both CUDA only); buckets: plain torch, anywhere. A backend asked for by name that cannot serve is an error at start."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Hand the formulas between the matrix products to torch's compiler: a few seconds' start for a fifth to a third more speed. auto: for
    runs of at least COMPILE_FLOPS on a machine that has what it needs (a C++ compiler); the record says whether it was."""
    checkpoints: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _one_budget(self) -> Training:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give either steps or tokens")
        return self

    @property
    def step_tokens(self) -> int:
        """Capacity of a step, in tokens."""
        return self.sequence_length * self.batch_sequences * self.accumulate

    @property
    def total_steps(self) -> int:
        return self.steps if self.steps is not None else -(-int(self.tokens or 0) // self.step_tokens)
