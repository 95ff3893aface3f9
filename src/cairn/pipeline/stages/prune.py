"""The stage `prune`: a model and calibration rows in, a smaller model of the same family out. Knows how the rooms fit together.

Output: `model/`, an ordinary Hugging Face folder with tokenizer and format. It is to be trained further, best distilled from the whole
model (objective distillation): what was cut out is missing in it.
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
from cairn.pipeline.companions import give_tokenizer
from cairn.pipeline.documents import encode_sources
from cairn.pipeline.drafts import empty
from cairn.pipeline.stage import Context, Estimate, PlannedInputs, Stage, register


class PruneConfig(Config):
    """How large the rest is, and on what its parts are measured. What is left out stays as it is."""

    model: StageRef | None = None
    """The stage whose model is cut. Give this or `checkpoint`."""
    checkpoint: InputPath | None = None
    """A Hugging Face folder with tokenizer."""
    layers: int | None = Field(default=None, gt=0)
    """How many blocks stay: those that change the hidden state most."""
    keep_layers: list[int] | None = Field(default=None, min_length=1)
    """Which blocks stay, from 0, in place of `layers`."""
    heads: int | None = Field(default=None, gt=0)
    """Query heads that stay in each block. They go in groups that share a key and value head, and it goes with them."""
    intermediate_size: int | None = Field(default=None, gt=0)
    """Channels that stay inside each feed-forward block."""
    hidden_size: int | None = Field(default=None, gt=0)
    """Channels that stay in the residual stream, the same in all blocks."""
    data: list[Source] = Field(min_length=1)
    """Calibration rows; weights do not count."""
    documents: int = Field(default=256, gt=0)
    """So many documents of each source are enough."""
    format: Annotated[str, checked(check_format)] | None = None
    """Chat format; None means the one that lies with the model."""
    sequence_length: int = Field(default=512, gt=1)
    """Longest document, in tokens."""
    overlong: Literal["split", "truncate", "drop"] = "truncate"
    """What is done with longer ones."""
    batch_sequences: int = Field(default=8, gt=0)
    """So many times `sequence_length` tokens are a pass."""

    @model_validator(mode="after")
    def _one_model(self) -> PruneConfig:
        if (self.model is None) == (self.checkpoint is None):
            raise ValueError("give either model or checkpoint")
        if all(x is None for x in (self.layers, self.keep_layers, self.heads, self.intermediate_size, self.hidden_size)):
            raise ValueError("nothing is cut: give layers, keep_layers, heads, intermediate_size or hidden_size")
        if self.layers is not None and self.keep_layers is not None:
            raise ValueError("give either layers or keep_layers")
        if self.keep_layers is not None and len(set(self.keep_layers)) != len(self.keep_layers):
            raise ValueError("keep_layers names one layer twice")
        return self


@register
class Prune(Stage):
    """Cut a model."""

    kind = "prune"
    config = PruneConfig

    def run(self, context: Context) -> dict[str, Any]:
        from cairn.chat.format import load_format
        from cairn.chat.render import Renderer
        from cairn.model.adapter import base_config
        from cairn.model.context import check_length
        from cairn.model.determinism import deterministic
        from cairn.model.load import load_model, save_model
        from cairn.model.pruning import Sizes, kept_layers, measuring, prune
        from cairn.tokenizer.load import Tokenizer

        config: PruneConfig = context.config
        empty(context.draft)
        deterministic()
        folder = model_place(context.inputs[config.model].path()) if config.model is not None else Path(str(config.checkpoint))
        check_length(base_config(folder), config.sequence_length)
        tokenizer = Tokenizer.load(folder)
        renderer = Renderer(load_format(config.format or str(folder)), tokenizer)
        documents, _, _, _ = encode_sources(context, renderer, tokenizer, "language_model")
        model = load_model(folder, "float32")
        sizes = Sizes(
            layers=config.layers, keep_layers=tuple(config.keep_layers) if config.keep_layers is not None else None, heads=config.heads,
            intermediate_size=config.intermediate_size, hidden_size=config.hidden_size,
        )  # fmt: skip
        width = any(x is not None for x in (config.heads, config.intermediate_size, config.hidden_size))
        with measuring(model, width=width) as influence:
            tokens = _run(context, model, [one[: config.documents] for one in documents])
        before = sum(p.numel() for p in model.parameters())
        cut = prune(model, influence, sizes)
        save_model(cut, context.draft / "model")
        give_tokenizer(folder, context.draft / "model", config.format)
        after, layers = sum(p.numel() for p in cut.parameters()), kept_layers(influence, sizes)
        context.progress.note(f"{after:,} of {before:,} parameters are left; layers {', '.join(map(str, layers))}")
        return {
            "parameters": after, "parameters_before": before, "layers": layers, "layer_influence": influence.blocks,
            "calibration_tokens": tokens,
        }  # fmt: skip

    def outputs(self, config: PruneConfig) -> set[str]:
        return {MODEL_FILES[0]}

    def needs(self, config: PruneConfig) -> Iterator[tuple[tuple[str, ...], str, tuple[str, ...]]]:
        if config.model is not None:
            yield ("model",), config.model, MODEL_FILES

    def estimate(self, config: PruneConfig, inputs: PlannedInputs) -> Estimate | None:
        before = inputs.estimates.get(str(config.model))
        return Estimate(disk_bytes=4 * before.parameters) if before is not None and before.parameters is not None else None


def _run(context: Context, model: Any, documents: list[list[Any]]) -> int:
    """Put the documents through the model; how many tokens they have."""
    import torch

    from cairn.data.batches import make_batch
    from cairn.model.packing import try_packing
    from cairn.train.forward import TorchBatch, hidden_states
    from cairn.train.reference import passes

    config: PruneConfig = context.config
    plain = model.config._attn_implementation
    packed = try_packing(model, longest=config.sequence_length).packs
    tokens, total = 0, sum(map(len, documents))
    context.progress.start(total, "documents")
    done = 0
    with torch.no_grad():
        for part in passes(documents, config.sequence_length * config.batch_sequences):
            arrays = make_batch([documents[s][d] for s, d in part], [s for s, _ in part], [d for _, d in part])
            hidden_states(model, TorchBatch.of(arrays, "cpu", packed=packed))
            tokens, done = tokens + arrays.tokens, done + len(part)
            context.progress.update(done)
    model.set_attn_implementation(plain)
    return tokens
