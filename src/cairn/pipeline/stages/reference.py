"""The stage `reference`: a model and preferences in, the log-probability of every answer out. Knows how the rooms fit together.

Its key is (model, rows, template, limits), so trainings that differ in anything else share one artifact. Output: `reference.safetensors`.
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
from cairn.pipeline.documents import REFERENCE, encode_sources
from cairn.pipeline.drafts import empty
from cairn.pipeline.stage import Context, Stage, register


class ReferenceConfig(Config):
    """What is measured. Rows, format and limits must be those of the training that uses it."""

    model: StageRef | None = None
    """The train stage whose model is the reference. Give this or `checkpoint`."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder with tokenizer."""
    format: Annotated[str, checked(check_format)] | None = None
    """Chat format; None means the one that lies with the model."""
    data: list[Source] = Field(min_length=1)
    """Preferences; weights do not count."""
    sequence_length: int = Field(default=512, gt=1)
    """Longest prompt with one answer, in tokens."""
    overlong: Literal["truncate", "drop", "split"] = "truncate"
    """What is done with longer ones, as in training."""
    batch_sequences: int = Field(default=16, gt=0)
    """So many times `sequence_length` tokens are a pass."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What it is computed in. That of the training, so that what both round cancels."""
    mismatched: bool = False
    """Measure for each prompt also an answer that is not its own, as kto needs."""

    @model_validator(mode="after")
    def _one_model(self) -> ReferenceConfig:
        if (self.model is None) == (self.checkpoint is None):
            raise ValueError("give either model or checkpoint")
        return self


@register
class ReferenceStage(Stage):
    """Measure a reference."""

    kind = "reference"
    config = ReferenceConfig

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.chat.format import load_format
        from cairn.chat.render import Renderer
        from cairn.model.determinism import deterministic
        from cairn.model.load import load_model
        from cairn.tokenizer.load import Tokenizer
        from cairn.train import reference
        from cairn.train.ranks import alone

        config: ReferenceConfig = context.config
        empty(context.draft)
        deterministic()
        folder = model_place(context.inputs[config.model].path()) if config.model is not None else Path(str(config.checkpoint))
        tokenizer = Tokenizer.load(folder)
        renderer = Renderer(load_format(config.format or str(folder)), tokenizer)
        documents, _, _, counters = encode_sources(context, renderer, tokenizer, "answers", mismatched=config.mismatched)
        ranks = alone()
        model = load_model(folder, "float32").to(ranks.device)
        packed = reference.prepare(model, config.precision, config.sequence_length)
        context.progress.start(sum(map(len, documents)), "documents")
        capacity = config.sequence_length * config.batch_sequences
        found = reference.measure(
            documents, capacity, lambda batch: reference.values_of(model, batch), ranks, packed=packed,
            on_progress=lambda done, total: context.progress.update(done),
        )  # fmt: skip
        reference.save(found, reference.documents_digest(documents), context.draft / REFERENCE)
        answers = sum(len(values) for values in found.values)
        return {"answers": answers, "mean_logp": float(sum(v.sum(dtype="float64") for v in found.values) / answers), "sources": counters}

    def outputs(self, config: ReferenceConfig) -> set[str]:
        return {REFERENCE}

    def needs(self, config: ReferenceConfig) -> Iterator[tuple[tuple[str, ...], str, tuple[str, ...]]]:
        if config.model is not None:
            yield ("model",), config.model, MODEL_FILES
