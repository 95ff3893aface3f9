"""What a training will cost, from its configuration and the stages before it: for plans. Loads no weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cairn.model.config import ModelConfig
from cairn.model.context import check_length, check_positions
from cairn.model.cost import Beside, Dimensions, memory, muon_seconds, seconds
from cairn.pipeline.checkpoints import saved_parameters
from cairn.pipeline.passes import planned_passes, start_folder, tokenizer_folder
from cairn.pipeline.stage import Estimate
from cairn.pipeline.training import TrainConfig, check_vocabulary
from cairn.train.board import require_tensorboard
from cairn.train.config import memory_run


def estimate(config: TrainConfig, inputs: dict[str, Any]) -> Estimate:
    """What the configuration and the stages before tell.

    Raises:
        UserError: what is trained further does not fit what it is asked for, or TensorBoard is asked for and missing.
    """
    if config.watch.tensorboard:
        require_tensorboard()
    _check_start(config, inputs)
    return replace(_cost(config, inputs), passes=planned_passes(config, inputs))


def _cost(config: TrainConfig, inputs: dict[str, Any]) -> Estimate:
    """A fresh model is counted without memory, one that is trained on is known."""
    from cairn.model.config import count_parameters, training_flops
    from cairn.model.speed import gemm_rate

    tokens = config.total_steps * config.step_tokens
    if config.adapter is not None:
        return _of_adapter(config, inputs, tokens)
    shape, vocab = config.model, _vocab_size(config, inputs)
    if shape is not None and vocab is not None:
        total, matrices = count_parameters(shape, vocab)
        mean = config.sequence_length / 4  # documents are shorter than their limit; only the attention's small share depends on it
        flops = training_flops(matrices, tokens, layers=shape.layers, hidden_size=shape.hidden_size, mean_length=mean)
    else:
        before = getattr(inputs, "estimates", {}).get(config.init)
        known = saved_parameters(Path(config.checkpoint)) if config.checkpoint is not None else before and before.parameters
        if known is None:
            return Estimate(tokens=tokens)
        total, flops = known, 6.0 * known * tokens
        shape = _planned_model(config, inputs)
    took = seconds(flops, gemm_rate(config.compute), hidden=shape.hidden_size if shape is not None else 1024, compute=config.compute)
    models = 8 if config.ema is not None and config.ema.use == "both" else 4
    disk = round(total * (models + config.checkpoint_bytes * (config.kept_checkpoints + 2)))
    start = start_folder(config, inputs)
    model = _dimensions(shape, total) if shape is not None else _dimensions_of(start, total) if start is not None else None
    peak = None if model is None else _peak_memory(config, model)
    if model is not None and config.optimizer.kind == "muon":
        took += config.total_steps * muon_seconds(model, gemm_rate("bfloat16"))
    return Estimate(parameters=total, tokens=tokens, flops=flops, memory_bytes=peak, disk_bytes=disk, seconds=took)


def _planned_model(config: TrainConfig, inputs: dict[str, Any]) -> ModelConfig | None:
    """The shape that the recipe gives the model which is trained further; None where its stage makes none anew, as pruning and merging
    do: their key `model` names a stage."""
    found = getattr(getattr(inputs, "configs", {}).get(config.init), "model", None)
    return found if isinstance(found, ModelConfig) else None


def _check_start(config: TrainConfig, inputs: dict[str, Any]) -> None:
    """See that the model which is trained further fits the sequences and the tokenizer, hours before the stage would say so.

    Raises:
        UserError: it does not.
    """
    folder = start_folder(config, inputs)
    if folder is None:
        planned = _planned_model(config, inputs)
        check_positions(planned.context if planned is not None else None, config.sequence_length)
        return
    from cairn.model.adapter import base_config

    shape = base_config(folder)
    check_length(shape, config.sequence_length)
    place = tokenizer_folder(config, inputs)
    have = getattr(shape, "vocab_size", None)
    # A tokenizer that is still to be trained may come out smaller than it was asked for.
    if place is not None and have is not None:
        from cairn.tokenizer.load import Tokenizer

        tied = bool(getattr(shape, "tie_word_embeddings", False))
        check_vocabulary(config, Tokenizer.load(place).vocab_size, have, tied=tied, where=str(folder))


def _of_adapter(config: TrainConfig, inputs: dict[str, Any], tokens: int) -> Estimate:
    """Cost of an adapter, as far as its base is known before it is trained; a target that the base lacks is told here already."""
    from cairn.model.adapter import base_config, plan_adapter
    from cairn.model.config import transformers_config
    from cairn.model.speed import gemm_rate

    assert config.adapter is not None
    folder, planned = start_folder(config, inputs), _planned_model(config, inputs)
    known = getattr(getattr(inputs, "estimates", {}).get(config.init), "parameters", None)
    if folder is not None:
        shape = base_config(folder)
        base, adapter = plan_adapter(shape, config.adapter)
        base = known or base
        model = _dimensions_of(folder, base)
    elif planned is not None and known is not None:
        base, model = known, _dimensions(planned, known)
        shape = transformers_config(planned, vocab_size=model.vocabulary, bos_id=0, eos_id=0, pad_id=0)
        adapter = plan_adapter(shape, config.adapter)[1]
    else:
        return Estimate(tokens=tokens)
    peak = None if model is None else _peak_memory(config, model, adapter)
    flops = (4.0 * base + 6.0 * adapter.trained) * tokens
    each = 4 + config.checkpoint_bytes * (config.kept_checkpoints + 2)
    disk = round(adapter.trained * each + (4 * base if config.adapter.merge else 0))
    hidden = getattr(shape, "hidden_size", 1024)
    took = seconds(flops, gemm_rate(config.compute), hidden=hidden, compute=config.compute, adapter=adapter)
    total = base + adapter.trained
    return Estimate(parameters=total, tokens=tokens, flops=flops, memory_bytes=peak, disk_bytes=disk, seconds=took)


def _peak_memory(config: TrainConfig, model: Dimensions, adapter: Beside | None = None) -> int:
    """The calculator's prediction for one process on this machine's processor."""
    merges = config.adapter is not None and config.adapter.merge
    return round(memory(model, memory_run(config, model, adapter=adapter, merges=merges)).peak)


def _dimensions(shape: ModelConfig, parameters: int) -> Dimensions:
    """Of a model that a recipe describes."""
    copies = 1 if shape.tied else 2
    blocks = Dimensions.of(shape, vocabulary=0)
    # The vocabulary, out of what the blocks leave of the whole: a stage that trains on knows no tokenizer here.
    return Dimensions.of(shape, vocabulary=(parameters - blocks.total) // (shape.hidden_size * copies), parameters=parameters)


def _dimensions_of(folder: Path, parameters: int) -> Dimensions | None:
    """Of a model that lies in a folder; None for one without the sizes of a decoder with attention."""
    from cairn.model.adapter import base_config
    from cairn.model.recompute import dimensions_of_config, has_sizes

    shape = base_config(folder).get_text_config()
    if not has_sizes(shape):
        return None
    return dimensions_of_config(shape, vocabulary=shape.vocab_size, tied=bool(shape.tie_word_embeddings), parameters=parameters)


def _vocab_size(config: TrainConfig, inputs: dict[str, Any]) -> int | None:
    """Of the tokenizer stage: as recorded, or as planned where it did not run yet."""
    if config.tokenizer is None:
        return None
    artifact = inputs.get(config.tokenizer)
    if artifact is not None:
        return int(artifact.record.metrics["vocab_size"])
    return getattr(getattr(inputs, "configs", {}).get(config.tokenizer), "vocab_size", None)
