"""What a training run is told. Knows the model's and the data's configuration; nothing of how a step is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cairn.config import Config, checked
from cairn.errors import UserError, did_you_mean
from cairn.model.cost import Beside, Dimensions, Run, memory, recomputed_blocks
from cairn.train.distillation import DistillationConfig
from cairn.train.preference import PreferenceConfig, RewardConfig


def check_objective(name: str) -> None:
    """Raises:
    UserError: train/objectives has no file of that name. The files are not imported, since they bring torch.
    """
    known = {path.stem for path in (Path(__file__).parent / "objectives").glob("*.py") if not path.stem.startswith("_")}
    if name not in known:
        raise UserError(f"unknown objective '{name}'", remedy=did_you_mean(name, known))

COMPILE_FLOPS = 3e13
"""Training work from which compiling pays: some 15 s of compiling against a fifth of about 100 s (docs/experiments.md)."""


class GroupConfig(Config):
    """A rate or a decay of their own for the weights whose names match a pattern."""

    match: str = Field(min_length=1)
    """Pattern of weight names, such as "*.embed_tokens.weight" (* and ? as for files). A weight goes by the first pattern that fits it."""
    lr: float | None = Field(default=None, gt=0)
    """Peak rate; None leaves the one that the weight has without the group. It goes before `embedding_lr`."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Decoupled decay, of norms and biases too where they match; None leaves it."""

    @model_validator(mode="after")
    def _says_something(self) -> GroupConfig:
        if self.lr is None and self.weight_decay is None:
            raise ValueError("a group needs lr or weight_decay")
        return self


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
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's averages."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    state: Literal["float32", "int8"] = "float32"
    """How AdamW's moments and Muon's momentum are kept: 4 bytes a value, or a little over 1 (train/blocks.py). Vectors stay float32."""
    groups: list[GroupConfig] = Field(default_factory=list)
    """Rates and decays by weight name; the first that matches counts, and one that matches nothing is refused."""


class ScheduleConfig(Config):
    """How the rate runs over the steps, as a factor of its peak."""

    kind: Literal["wsd", "trapezoid", "cosine", "linear", "inverse_sqrt", "constant"] = "wsd"
    """All begin with the warm-up. wsd: stable, then linear decay (MiniCPM). trapezoid: the same shape with both lengths given in steps, so
    that a longer run repeats a shorter one up to its decay. cosine, linear: decay from there to the end. inverse_sqrt: 1/sqrt(step), then
    linear decay (Zhai et al. 2022). constant: no decay, and `final` says nothing."""
    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Share of the steps that warm up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The same as a number of steps; if given, `warmup` says nothing."""
    decay: float = Field(default=0.3, gt=0, le=1)
    """wsd and inverse_sqrt: share of the steps that decay, at the end."""
    decay_steps: int | None = Field(default=None, gt=0)
    """The same as a number of steps, for trapezoid too; if given, `decay` says nothing."""
    final: float = Field(default=0.0, ge=0, le=1)
    """The last factor."""

    @model_validator(mode="after")
    def _phases_fit(self) -> ScheduleConfig:
        if self.kind == "trapezoid" and (self.warmup_steps is None or self.decay_steps is None):
            raise ValueError("trapezoid needs warmup_steps and decay_steps; wsd is the same shape by shares")
        if self.decay_steps is not None and not self._decays_apart:
            raise ValueError(f"{self.kind} has no decay_steps; wsd, trapezoid and inverse_sqrt have them")
        if self._decays_apart and self.warmup_steps is None and self.decay_steps is None and self.warmup + self.decay > 1:
            # The factor would jump where the decay begins before the warm-up ends.
            raise ValueError(f"warmup ({self.warmup}) and decay ({self.decay}) are more than the whole run")
        return self

    @property
    def _decays_apart(self) -> bool:
        """Whether the decay is a phase of its own length."""
        return self.kind in ("wsd", "trapezoid", "inverse_sqrt")

    def lengths(self, total: int) -> tuple[int, int]:
        """Steps of the warm-up and of the decay in a run of `total` steps.

        Raises:
            ValueError: they do not fit into it.
        """
        warmup = round(self.warmup * total) if self.warmup_steps is None else self.warmup_steps
        if warmup > total:
            raise ValueError(f"the schedule's warm-up ({warmup} steps) is longer than the run ({total})")
        if not self._decays_apart:
            decay = 0 if self.kind == "constant" else total - warmup
        elif self.decay_steps is None:
            # Two shares that are rounded up each must not overlap.
            decay = min(max(1, round(self.decay * total)), total - warmup)
        else:
            decay = self.decay_steps
        if warmup + max(0, decay) > total:
            raise ValueError(f"the schedule's warm-up ({warmup} steps) and decay ({decay}) are longer than the run ({total})")
        return warmup, decay


class EmaConfig(Config):
    """An exponential moving average of the weights, which then is the finished model."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """What stays of the average at an update; it looks back over about every / (1 - decay) steps."""
    every: int = Field(default=1, gt=0)
    """Steps between two updates."""
    start: int = Field(default=0, ge=0)
    """The step after which the average begins, as a copy of the weights."""
    use: Literal["final", "both"] = "final"
    """final: `model/` is the average. both: `model/` is the average, and the last weights stand beside it in `model-last/`."""

    @property
    def first(self) -> int:
        """The step after which the average exists."""
        return self.start or self.every


class CheckpointConfig(Config):
    """Intermediate checkpoints that stay in the artifact (weights and optimiser state)."""

    every: int = Field(default=0, ge=0)
    """Steps between two; 0 keeps none. They are needed by `verify --interval`."""
    keep: int = Field(default=0, ge=0)
    """How many of them stay: the latest so many; 0 for all."""
    resume_seconds: float = Field(default=20.0, gt=0, exclude=True)
    """Time between two resume points, which a killed run goes on from and a finished one deletes. Longer where they would cost
    more than 2 % of the time. No part of the stage's key: it changes no output."""


class WatchConfig(Config):
    """What a training looks out for and where it shows itself. No part of the stage's key: it changes no output."""

    spike: Literal["off", "warn", "stop"] = "warn"
    """A loss far above those before it: said aloud with the documents concerned, or the run stops before the weights move."""
    spike_window: int = Field(default=100, ge=20)
    """Steps whose losses make the bound: their median and `spike_factor` times their spread."""
    spike_factor: float = Field(default=8.0, gt=0)
    """How far above, in robust standard deviations."""
    tensorboard: bool = False
    """Write event files under `logs/tensorboard` too; needs the extra `tensorboard`."""

    @field_validator("spike", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value


class MemoryConfig(Config):
    """How a training fits into memory. No part of the stage's key: like the number of ranks, it changes nothing but rounding."""

    sharding: Literal["auto", "replicate", "full"] = "auto"
    """Where weights, gradients and optimiser state lie when several ranks train. replicate: whole on each. full: a slice on each (FSDP2),
    for models that one device cannot hold. auto: replicate on CPU, and on a GPU if the predicted memory of a replica is at most 80 % of
    the device's; full else."""
    activation_checkpointing: Literal["off", "layers", "auto"] = "auto"
    """Whether blocks compute their activations again in the backward instead of keeping them: off, all (layers: about a third more
    operations), or as many as `budget_gb` asks for (auto). The numbers stay the same bits."""
    budget_gb: float | None = Field(default=None, gt=0)
    """With auto: the most memory that a rank may take in a step, in 10^9 bytes, by the rules of `cairn plan`, which also counts reading
    and merging an adapter's base. None: 90 % of a GPU's, and no limit on CPU."""

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value


class Training(Config):
    """Everything about training but where model, tokenizer and rows come from."""

    objective: Annotated[str, checked(check_objective)] = "supervised"
    """A file of train/objectives: language_model (every token is a target), supervised (the assistant's tokens are), preference and reward
    (a prompt's answers are compared), distillation (a teacher's distribution is the target), grpo (answers are the model's own,
    with rewards: the stage kind grpo), attributes (of the stage label)."""
    preference: PreferenceConfig | None = None
    """Of the objective preference: its loss; None: dpo with beta 0.1."""
    reward: RewardConfig | None = None
    """Of the objective reward: its loss; None: Bradley-Terry without a margin."""
    distillation: DistillationConfig | None = None
    """Of the objective distillation, which needs it: the teacher, and the divergence from it."""
    z_loss: float = Field(default=0.0, ge=0)
    """supervised and language_model: so much of log²Z of each target's logits is added to its loss, which keeps them from drifting (PaLM,
    Chowdhery et al. 2022, takes 1e-4). A step's `loss` holds it; that of each source does not."""
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps. Give this or `tokens`."""
    tokens: int | None = Field(default=None, gt=0)
    """The run's length as room for so many tokens: the steps are this divided by `step_tokens`, rounded up. A step takes whole documents
    for as long as they fit, so the tokens seen are a little fewer than its room; the record counts them."""
    sequence_length: int = Field(default=512, gt=0)
    """Longest document, and capacity of a pack, in tokens."""
    batch_sequences: int = Field(default=16, gt=0)
    """Packs in a micro-batch."""
    accumulate: int = Field(default=1, gt=0)
    """Micro-batches in a step, over all ranks: more ranks make fewer each, not a larger step. The loss is normalised by the supervised
    tokens of them all."""
    overlong: Literal["split", "truncate", "drop"] = "split"
    """A row longer than `sequence_length`. split: a text becomes several documents and loses nothing, a dialogue ends after its last answer
    that fits. truncate: so does a dialogue, and of a text only the beginning stays. drop: it is left out. The record counts each."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 switches clipping off."""
    precision: Literal["float32", "bfloat16", "bfloat16-pure"] = "float32"
    """bfloat16: forward and backward in bf16 with fp32 master weights, cast once a step. bfloat16-pure: no masters; weights are bf16 and an
    update is rounded up or down by chance, so that small ones count on average. Gradients of micro-batches then add up in bf16 too."""
    attention: Literal["auto", "varlen", "flex", "buckets"] = "auto"
    """How packed documents attend. auto: the fastest that this machine and the model's heads allow. varlen: FlashAttention; flex: flex
    attention (both CUDA only); buckets: plain torch, anywhere. A backend asked for by name that cannot serve is an error at start."""
    compile: Literal["auto", "on", "off"] = "auto"
    """What computes between the matrix products. auto and on: in bf16 on a CPU with AVX-512 and its bf16 products kernels of our own, which
    a C++ compiler makes once in five seconds. Elsewhere torch's compiler: on always, auto for runs of at least COMPILE_FLOPS on a machine
    that has what it needs, a few seconds' start for a fifth to a third more speed. off: plain torch."""
    ema: EmaConfig | None = None
    """An average of the weights, kept in fp32 and in checkpoints; None: none."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = Field(default=WatchConfig(), exclude=True)
    memory: MemoryConfig = Field(default=MemoryConfig(), exclude=True)

    @field_validator("compile", mode="before")
    @classmethod
    def _on_and_off_are_words(cls, value: Any) -> Any:
        # YAML reads a bare `on` or `yes` as true, `off` or `no` as false.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.steps is None) == (self.tokens is None) and not self._length_is_chosen():
            raise ValueError("give either steps or tokens")
        return self

    @model_validator(mode="after")
    def _objectives_own(self) -> Training:
        if self.objective == "distillation" and self.distillation is None:
            raise ValueError("a distillation needs a teacher: give distillation: {teacher: STAGE}")
        for name in ("preference", "reward", "distillation"):
            if getattr(self, name) is not None and self.objective != name:
                raise ValueError(f"`{name}` belongs to the objective {name}, and this one is {self.objective}")
        if self.z_loss and self.objective not in ("supervised", "language_model"):
            raise ValueError(f"z_loss belongs to the objectives supervised and language_model, and this one is {self.objective}")
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> Training:
        if self.steps is None and self.tokens is None:
            return self
        self.schedule.lengths(self.total_steps)
        if self.ema is not None and self.ema.first > self.total_steps:
            raise ValueError(f"the average (ema) would begin after step {self.ema.first}, but the run has {self.total_steps}")
        return self

    def _length_is_chosen(self) -> bool:
        """Whether something else decides how long it is."""
        return False

    @property
    def step_tokens(self) -> int:
        """Capacity of a step, in tokens."""
        return self.sequence_length * self.batch_sequences * self.accumulate

    @property
    def total_steps(self) -> int:
        return self.steps if self.steps is not None else -(-int(self.tokens or 0) // self.step_tokens)

    @property
    def needs_reference(self) -> bool:
        """Whether answers are weighed against a reference model."""
        return self.objective == "preference" and (self.preference or PreferenceConfig()).needs_reference

    @property
    def mismatched(self) -> bool:
        """Whether documents carry an answer that is not theirs."""
        return self.objective == "preference" and (self.preference or PreferenceConfig()).mismatched

    @property
    def pure(self) -> bool:
        """Whether weights are kept in bf16 alone."""
        return self.precision == "bfloat16-pure"

    @property
    def compute(self) -> Literal["float32", "bfloat16"]:
        """The type that forward and backward run in."""
        return "float32" if self.precision == "float32" else "bfloat16"

    @property
    def kept_checkpoints(self) -> int:
        """How many checkpoints stay at most."""
        every, keep = self.checkpoints.every, self.checkpoints.keep
        kept = (self.total_steps - 1) // every if every else 0
        return min(kept, keep) if keep else kept

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes of a checkpoint per parameter, as if all were AdamW's: weights, two moments, and the average."""
        return (2 if self.pure else 4) + (2.1 if self.optimizer.state == "int8" else 8) + (4 if self.ema else 0)


def memory_run(
    config: Training, model: Dimensions, *, ranks: int = 1, device: str = "cpu", device_bytes: float | None = None, fused: bool = True,
    adapter: Beside | None = None, merges: bool = False,
) -> Run:  # fmt: skip
    """How a training is laid out in memory, by the rules of `MemoryConfig`: the same on every machine with the same device.

    Args:
        config: the training.
        model: its model's sizes.
        ranks: how many train.
        device: cpu or cuda.
        device_bytes: a GPU's memory; None sets no limit.
        fused: whether the blocks train in fused forms.
        adapter: what is trained beside a frozen base; ranks are replicas then.
        merges: whether it is merged at the end.

    Raises:
        UserError: the budget is too small.
    """
    told = config.memory
    run = Run(
        # Documents are shorter than their limit, and only attention's small share depends on their length.
        tokens=config.sequence_length * config.batch_sequences, document=config.sequence_length / 4, precision=config.precision,
        coded=config.optimizer.state != "float32", average=config.ema is not None,
        passes=-(-config.accumulate // ranks), optimizer=config.optimizer.kind, ranks=ranks, device=device, fused=fused,
        adapter=adapter, merges=merges,
    )  # fmt: skip
    sharding = told.sharding
    if sharding == "auto":
        fits = adapter is not None or device_bytes is None or ranks == 1 or memory(model, run).peak <= 0.8 * device_bytes
        sharding = "replicate" if fits else "full"
    run = replace(run, sharding=sharding)
    if told.activation_checkpointing == "layers":
        return replace(run, recomputed=model.layers)
    budget = told.budget_gb * 1e9 if told.budget_gb is not None else 0.9 * device_bytes if device_bytes is not None else None
    if told.activation_checkpointing == "off" or budget is None:
        return run
    return replace(run, recomputed=recomputed_blocks(model, run, budget))
