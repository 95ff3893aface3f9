"""The stage `teacher`: a model and rows in, its most probable next tokens at every target out. Knows how the rooms fit together.

Its key is (model, rows, template, limits), so that any number of distillations share one artifact, and the teacher need not be in memory
beside a student. Output: `teacher.safetensors`, 6 bytes a target and kept id.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cairn.chat.format import check_format
from cairn.config import Config, checked
from cairn.data.sources import Source
from cairn.ledger.refs import InputPath, StageRef
from cairn.model.adapter_config import MODEL_FILES, model_place
from cairn.pipeline.documents import TEACHER, encode_sources
from cairn.pipeline.drafts import empty
from cairn.pipeline.stage import Context, Stage, register


class TeacherConfig(Config):
    """Who is heard on what. Rows, format, targets and limits must be those of the training that uses it."""

    model: StageRef | None = None
    """The stage whose model is the teacher. Give this or `checkpoint`."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder with tokenizer."""
    format: Annotated[str, checked(check_format)] | None = None
    """Chat format; None means the one that lies with the model."""
    data: list[Source] = Field(min_length=1)
    """Rows; weights do not count."""
    targets: Literal["supervised", "language_model"] = "supervised"
    """Of a dialogue: the assistant's tokens, or every token."""
    top_k: int = Field(default=32, gt=0)
    """Ids kept at each target, the most probable ones, at most all but one of the vocabulary; all others are kept as one sum."""
    temperature: float = Field(default=1.0, gt=0)
    """What logits are divided by; that of the training."""
    sequence_length: int = Field(default=512, gt=1)
    """Longest document, in tokens."""
    overlong: Literal["split", "truncate", "drop"] = "split"
    """What is done with longer ones, as in training."""
    batch_sequences: int = Field(default=16, gt=0)
    """So many times `sequence_length` tokens are a pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What it is computed in."""

    @model_validator(mode="after")
    def _one_model(self) -> TeacherConfig:
        if (self.model is None) == (self.checkpoint is None):
            raise ValueError("give either model or checkpoint")
        return self


@register
class TeacherStage(Stage):
    """Hear a teacher."""

    kind = "teacher"
    config = TeacherConfig

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.chat.format import load_format
        from cairn.chat.render import Renderer
        from cairn.model.determinism import deterministic
        from cairn.model.load import load_model
        from cairn.tokenizer.load import Tokenizer
        from cairn.train import teacher
        from cairn.train.ranks import alone
        from cairn.train.reference import documents_digest, prepare

        config: TeacherConfig = context.config
        empty(context.draft)
        deterministic()
        folder = model_place(context.inputs[config.model].path()) if config.model is not None else Path(str(config.checkpoint))
        tokenizer = Tokenizer.load(folder)
        renderer = Renderer(load_format(config.format or str(folder)), tokenizer)
        documents, _, _, counters = encode_sources(context, renderer, tokenizer, config.targets)
        device = alone().device
        model = load_model(folder, "float32").to(device)
        packed = prepare(model, config.precision, config.sequence_length)
        context.progress.start(sum(map(len, documents)), "documents")
        stored, inside = teacher.measure(
            model, documents, config.top_k, config.temperature, config.sequence_length * config.batch_sequences, packed=packed,
            device=device, on_progress=lambda done, total: context.progress.update(done),
        )  # fmt: skip
        teacher.save(stored, documents_digest(documents), context.draft / TEACHER)
        return {"targets": sum(len(ids) for ids in stored.ids), "probability_in_top_k": inside, "sources": counters}

    def outputs(self, config: TeacherConfig) -> set[str]:
        return {TEACHER}

    def needs(self, config: TeacherConfig) -> Iterator[tuple[tuple[str, ...], str, tuple[str, ...]]]:
        if config.model is not None:
            yield ("model",), config.model, MODEL_FILES
