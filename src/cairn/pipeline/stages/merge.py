"""The stage `merge`: models of one architecture in, one model out. Knows how the rooms fit together.

Output: `model/`, an ordinary Hugging Face folder with tokenizer and format, which further stages take as they take a training's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from cairn.chat.format import check_format
from cairn.config import Config, checked
from cairn.ledger.refs import InputPath, StageRef
from cairn.model.adapter_config import MODEL_FILES, model_place
from cairn.model.merge_config import MergeConfig
from cairn.pipeline.blend import blend
from cairn.pipeline.drafts import empty
from cairn.pipeline.stage import Context, Estimate, PlannedInputs, Stage, register


class Merged(Config):
    """One of the models."""

    model: StageRef | None = None
    """The stage whose model it is. Give this or `checkpoint`."""
    step: int | None = Field(default=None, gt=0)
    """An intermediate checkpoint of that training in place of its end."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder with tokenizer."""
    weight: float = 1.0
    """How much it counts. linear and slerp: its share. Otherwise its change against the base is multiplied with it."""

    @model_validator(mode="after")
    def _one_place(self) -> Merged:
        if (self.model is None) == (self.checkpoint is None):
            raise ValueError("give either model or checkpoint")
        if self.step is not None and self.model is None:
            raise ValueError("only a stage has steps; name the checkpoint's own folder")
        return self


class MergeStageConfig(MergeConfig):
    """Which models become one, and how."""

    models: list[Merged] = Field(min_length=1)
    """The models, of one architecture and one tokenizer."""
    base: Merged | None = None
    """What they were tuned from."""
    format: Annotated[str, checked(check_format)] | None = None
    """The chat format of the result; None means the one that the models agree on."""

    @model_validator(mode="after")
    def _fits_models(self) -> MergeStageConfig:
        self.check_models([one.weight for one in self.models], base=self.base is not None)
        if self.base is not None and self.base.weight != 1.0:
            raise ValueError("a base has no weight: `scale` says how much of the change is added to it")
        return self


@register
class MergeStage(Stage):
    """Merge models."""

    kind = "merge"
    config = MergeStageConfig

    def run(self, context: Context) -> dict[str, Any]:
        config: MergeStageConfig = context.config
        empty(context.draft)
        sources = [_source(context, one) for one in config.models]
        base = _source(context, config.base) if config.base is not None else None
        context.progress.start(1, "parameters")

        def told(done: int, total: int) -> None:
            if done == total:
                context.progress.note(f"merged {total:,} parameters of {len(sources)} models")

        return blend(config, sources, base, config.format, context.draft / "model", context.seed, told)

    def outputs(self, config: MergeStageConfig) -> set[str]:
        return {MODEL_FILES[0]}

    def needs(self, config: MergeStageConfig) -> Iterator[tuple[tuple[str | int, ...], str, tuple[str, ...]]]:
        for number, one in enumerate(config.models):
            if one.model is not None:
                yield ("models", number, "model"), one.model, MODEL_FILES
        if config.base is not None and config.base.model is not None:
            yield ("base", "model"), config.base.model, MODEL_FILES

    def estimate(self, config: MergeStageConfig, inputs: PlannedInputs) -> Estimate:
        known = [inputs.estimates[one.model].parameters for one in config.models if one.model in inputs.estimates]
        parameters = known[0] if known else None
        return Estimate(parameters=parameters, disk_bytes=4 * parameters if parameters is not None else None)


def _source(context: Context, one: Merged) -> Any:
    from cairn.model.merging import Source

    if one.checkpoint is not None:
        return Source(Path(one.checkpoint), one.weight)
    artifact = context.inputs[str(one.model)]
    step = artifact.path(f"checkpoints/step-{one.step:06d}") if one.step is not None else None
    return Source(model_place(artifact.path()), one.weight, step)
