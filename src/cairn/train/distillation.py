"""What a distillation is told. Torch-free; knows no model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cairn.config import Config
from cairn.ledger.refs import InputPath, StageRef


class DistillationConfig(Config):
    """From whom a student learns, and how it is compared with its teacher at every target."""

    teacher: StageRef | None = None
    """A stage of kind teacher, whose numbers are read; or one with a model, which computes at every step. Give this or `checkpoint`."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder whose model computes at every step."""
    loss: Literal["forward", "reverse", "jsd"] = "forward"
    """forward: KL(teacher || student), which covers all that the teacher may say (Hinton et al. 2015). reverse: KL(student || teacher),
    which keeps to what the teacher says most (MiniLLM, Gu et al. 2023). jsd: between them (generalised Jensen-Shannon; GKD, Agarwal et al.
    2023)."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """jsd: the teacher's share in the mixture that both are compared with."""
    temperature: float = Field(default=1.0, gt=0)
    """Both sides' logits are divided by it; the divergence is multiplied by its square, so that rates hold (Hinton et al. 2015)."""
    hard: float = Field(default=0.0, ge=0, lt=1)
    """Share of the loss that is the data's own -log p of the target."""
    hidden: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the distance between both sides' last hidden states at a target, |student - teacher|² / |teacher|², added to the loss. It
    says more than probabilities where the teacher is all but certain (Minitron, Muralidharan et al. 2024). For a student that was cut out
    of its teacher in depth, with a teacher that computes at every step."""
    on_policy: float = Field(default=0.0, ge=0, le=1)
    """Share of the dialogues whose last answer the student gives itself, with its weights as they are at that step, for the teacher to
    score (GKD). It needs a teacher that computes at every step."""
    max_new_tokens: int = Field(default=128, gt=0)
    """on_policy: longest answer of the student's, in tokens."""
    targets: Literal["supervised", "language_model"] = "supervised"
    """What is learnt of a dialogue: the assistant's tokens, or every token."""

    @model_validator(mode="after")
    def _one_teacher(self) -> DistillationConfig:
        if (self.teacher is None) == (self.checkpoint is None):
            raise ValueError("give either teacher or checkpoint: who is learnt from")
        # Against the default, for a record holds every key.
        if self.beta != type(self).model_fields["beta"].default and self.loss != "jsd":
            raise ValueError(f"{self.loss} has no beta; jsd has it")
        if self.on_policy and self.hard:
            raise ValueError("on_policy has no hard labels: the student's own tokens would be taken for right")
        if self.on_policy and self.targets != "supervised":
            raise ValueError("on_policy is about answers: it needs targets: supervised")
        return self
