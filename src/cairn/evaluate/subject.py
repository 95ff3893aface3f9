"""A model that is examined, with what reads and writes its text. Knows models, tokenizers and formats; no suite."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cairn.chat.format import Format
    from cairn.chat.render import Renderer
    from cairn.tokenizer.load import Tokenizer


@dataclass
class Subject:
    """A loaded model. Its chat format is read when a dialogue asks for it: a base model that only sees text needs none."""

    folder: Path
    """Where the model lies: config.json, weights, tokenizer."""
    model: Any
    """A transformers causal LM in evaluation mode."""
    tokenizer: Tokenizer
    """Its tokenizer."""

    @cached_property
    def format(self) -> Format:
        """The chat format that lies with the model."""
        from cairn.chat.format import load_format

        return load_format(str(self.folder))

    @cached_property
    def renderer(self) -> Renderer:
        """Renders dialogues as they were rendered in training."""
        from cairn.chat.render import Renderer

        return Renderer(self.format, self.tokenizer)

    @property
    def context(self) -> int | None:
        """How many positions the model was made for; None where it has no bound."""
        from cairn.model.context import context_length

        return context_length(self.model.config)


def load_subject(folder: Path, dtype: str = "float32") -> Subject:
    """Load what is examined, and see to it that it answers the same each time.

    Args:
        folder: a folder with config.json, safetensors and tokenizer.json.
        dtype: precision of the weights.

    Raises:
        UserError: the folder holds no such thing, or pickled weights.
    """
    from cairn.model.determinism import deterministic
    from cairn.model.load import load_model
    from cairn.tokenizer.load import Tokenizer

    deterministic()
    tokenizer = Tokenizer.load(folder)
    return Subject(folder=Path(folder), model=load_model(folder, dtype), tokenizer=tokenizer)
