"""A folder to an engine with the tokenizer and format that belong to it. Knows folders; references are resolved elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cairn.chat.format import Format, load_format
from cairn.chat.render import Renderer
from cairn.errors import UserError, did_you_mean
from cairn.generate.choose import Choose
from cairn.generate.constrain import Constrainer
from cairn.generate.engine import Engine
from cairn.generate.native.build import WEIGHTS as KINDS
from cairn.generate.session import Session
from cairn.model import determinism
from cairn.model.load import load_model
from cairn.tokenizer.load import Tokenizer

BUDGET = 32768
"""Tokens of prompts and answers that are held together."""


@dataclass
class Loaded:
    """A model that is ready to generate. Its format is read when asked for: continuing plain text needs none."""

    folder: Path
    engine: Engine
    tokenizer: Tokenizer

    @cached_property
    def format(self) -> Format:
        """The chat format that lies with the model.

        Raises:
            UserError: there is none.
        """
        return load_format(str(self.folder))

    @cached_property
    def constrainer(self) -> Constrainer:
        """Compiles constraints for plain text; those of dialogues are the session's, whose stop tokens may be others."""
        return Constrainer(self.tokenizer, [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id])

    @cached_property
    def session(self) -> Session:
        """Answers dialogues."""
        return Session(self.engine, self.tokenizer, self.format)


def load(
    folder: Path,
    *,
    format: str | None = None,
    dtype: str = "float32",
    max_batch: int = 64,
    max_batch_tokens: int = BUDGET,
    deterministic: bool = False,
    keep: bool = True,
    weights: str | None = None,
    drafts: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Loaded:
    """Load a model folder, and see to it that the same request gets the same answer in every process of this environment.

    Args:
        folder: config.json, safetensors and a tokenizer.
        format: a shipped chat format to use in place of the one that lies with the model.
        dtype: precision of the weights, float32 or bfloat16.
        max_batch: requests that run together at most.
        max_batch_tokens: tokens that they hold together at most; see `Engine`.
        deterministic: an answer's bytes cannot depend on its company; slower.
        keep: keep the prefixes of ended requests for the next ones; see `Engine`.
        weights: int8 or int4 rounds them, which is told with its price in perplexity; None: as `dtype` says.
        drafts: "lookup" or the folder of a small model with the same tokenizer: the same answers in fewer steps.
        say: told in a line each what a user should know about how the model runs.

    Raises:
        UserError: a folder without these, or with pickled weights.
    """
    if weights is not None and weights not in KINDS:
        raise UserError(f"weights of kind '{weights}' are not known", where="weights", remedy=did_you_mean(weights, KINDS))
    if drafts is not None and drafts != "lookup" and not Path(drafts).is_dir():
        # Loading would ask the hub for a word that was misspelt, again and again.
        raise UserError(f"there are no drafts '{drafts}'", where="drafts", remedy="write lookup, or the folder of a small model")
    determinism.deterministic()
    tokenizer = Tokenizer.load(folder)
    model = load_model(folder, dtype)
    drafter = drafts if drafts is None or drafts == "lookup" else load_model(drafts, dtype)
    engine = Engine(
        model, max_batch=max_batch, max_batch_tokens=max_batch_tokens, vocab_size=tokenizer.vocab_size, deterministic=deterministic,
        keep=keep, runner=Choose(weights, drafter, budget=max_batch_tokens, say=say),
    )  # fmt: skip
    engine.ready()
    loaded = Loaded(Path(folder), engine, tokenizer)
    if format is not None:
        loaded.format = load_format(format)
    return loaded


def load_chat(folder: Path, *, format: str | None = None, **options: Any) -> Loaded:
    """Like `load`, for a model that must be able to chat: a missing format is told before the weights are read.

    Raises:
        UserError: no chat format lies with the model, or its tokenizer lacks the format's special tokens.
    """
    Renderer(load_format(format or str(folder)), Tokenizer.load(folder))
    return load(folder, format=format, **options)
