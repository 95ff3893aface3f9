"""Models in and out of folders: fresh ones out of a seed, saved ones out of safetensors. Knows transformers; no chat, no data.

Pickled weights are refused (loading a pickle runs whatever it says), and so is code that a checkpoint brings along.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cairn.errors import UserError, did_you_mean
from cairn.ledger import seeds
from cairn.model.attention import keep_caps
from cairn.model.config import ModelConfig, transformers_config
from cairn.model.folder import refuse_pickles

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The torch type of a precision's name."""
    if name not in DTYPES:
        raise UserError(f"unknown precision '{name}'", remedy=did_you_mean(name, DTYPES))
    return DTYPES[name]


def new_model(config: ModelConfig, *, vocab_size: int, bos_id: int | None, eos_id: int | None, pad_id: int | None, seed: int) -> Any:
    """A transformers causal LM with random fp32 weights that are a function of `seed` alone."""
    from transformers import AutoModelForCausalLM

    hf = transformers_config(config, vocab_size=vocab_size, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
    with torch.random.fork_rng(devices=[]):
        # transformers draws from the global generator; seeding a fork of it keeps the draw a function and the caller's state untouched.
        torch.manual_seed(seeds.seed(seed, "init"))
        model = AutoModelForCausalLM.from_config(hf, dtype=torch.float32)
    if config.embedding_range is not None:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(config.embedding_range / config.initializer_range)
    if config.mup is not None:
        from cairn.model.mup import parametrise

        parametrise(model, config.mup)
    return keep_caps(model)


def load_model(folder: str | Path, dtype: str = "float32", *, eval_mode: bool = True) -> Any:
    """Load a causal LM from a folder, or by its hub name.

    Args:
        folder: a Hugging Face folder (config.json + safetensors), a hub name `owner/model`, or an adapter that lies in the artifact of
            its training; that one is applied on its base and merged in memory.
        dtype: float32 or bfloat16.
        eval_mode: switch dropout off.

    Raises:
        UserError: no such folder, pickled weights, or weights that do not fit the configuration.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from cairn.model import adapter

    path = Path(folder)
    if path.is_dir() and adapter.is_adapter(path):
        model = adapter.merged(adapter.load_on_base(path, adapter.base_of(path))).to(dtype_of(dtype))
        return model.eval() if eval_mode else model.train()
    if path.is_dir():
        refuse_pickles(path)
    settings: dict[str, Any] = {"dtype": dtype_of(dtype), "use_safetensors": True, "trust_remote_code": False}
    # Weights of another shape are then listed, and refused below by name; transformers itself only points to a table in its log.
    settings["ignore_mismatched_sizes"] = True
    loader: Any = AutoModelForCausalLM
    try:
        with no_report():
            model, found = loader.from_pretrained(str(folder), **settings, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot load the model: {reason}", where=str(folder), remedy="check the folder or name") from error
    if found["mismatched_keys"]:
        name, saved, wanted = min(found["mismatched_keys"])
        what = f"the checkpoint's weight '{name}' is of shape {tuple(saved)}, its config.json asks for {tuple(wanted)}"
        raise UserError(what, where=str(folder), remedy="give weights and config.json of one model")
    if "score.weight" in found["unexpected_keys"]:
        # Where input and output embedding are one, nothing would be missing, and it would answer with what it forgot.
        what = "this is a reward model or a predictor of attributes: it gives numbers, and no text"
        raise UserError(what, where=str(folder), remedy="name the model that it was made from, or another that answers")
    if found["missing_keys"]:
        # transformers fills them with random numbers and a warning: the model would load and talk nonsense.
        names = sorted(found["missing_keys"])
        what = f"{len(names)} weights of the model are missing, such as '{names[0]}'"
        raise UserError(what, where=str(folder), remedy="give the whole checkpoint")
    if found["unexpected_keys"]:
        names = sorted(found["unexpected_keys"])
        warnings.warn(f"{folder}: {len(names)} weights of the checkpoint have no place in the model, such as '{names[0]}'", stacklevel=2)
    return keep_caps(model.eval() if eval_mode else model.train())


@contextmanager
def no_report() -> Iterator[None]:
    """Without transformers' bars, which break the lines of ours, and its table of a hundred lines: what matters in it is told in one."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def save_model(model: Any, folder: Path, *, stop_ids: list[int] | None = None) -> None:
    """Write config.json, model.safetensors and generation_config.json; bytes depend on the weights and the configuration alone."""
    # A reward model generates nothing.
    if stop_ids and getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    with no_report():
        model.save_pretrained(str(folder), safe_serialization=True)
