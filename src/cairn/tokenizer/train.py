"""Trains a byte-level BPE and saves it as an ordinary Hugging Face folder. Knows a format only by what it must put into that folder.

The vocabulary starts from the 256 bytes, so that any text can be written and read back exactly; nothing is normalised.
Digits stand alone. A format's borders (strings at whose edges no token may reach over, such as "### Response: ") are cut
out before BPE sees the text, so that the tokens of a prompt are always the first tokens of prompt and answer together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from cairn.config import Config
from cairn.errors import UserError
from cairn.tokenizer.load import Tokenizer

PAD = "<|pad|>"
_BATCH = 1000
_WORDS = (
    r"\p{N}",  # digits one by one
    r"'(?:[sdmt]|ll|ve|re)(?!\p{L})",
    r" ?[\p{L}\p{M}]+",
    r" ?[^\s\p{L}\p{M}\p{N}]+",
    r"\s+(?!\S)",
    r"\s+",
)


def _longest(text: str) -> tuple[int, str]:
    return -len(text), text


class Borders(Config):
    """Strings at whose edges tokens end; a string may be one token itself."""

    start: tuple[str, ...] = ()
    """Only where a stretch between special tokens starts."""
    end: tuple[str, ...] = ()
    """Only where such a stretch ends."""
    anywhere: tuple[str | tuple[str, str], ...] = ()
    """Wherever they stand. A pair is a string and what is cut off right behind it, such as the space behind "[/INST]"."""

    def strings(self) -> list[str]:
        """Every string that stands alone, longest first."""
        found = {*self.start, *self.end}
        for entry in self.anywhere:
            found.update((entry,) if isinstance(entry, str) else entry)
        return sorted(found, key=_longest)

    def pattern(self) -> str:
        """The regular expression of all borders, in the dialect of `tokenizers`."""
        first = sorted((e if isinstance(e, str) else e[0] for e in self.anywhere), key=_longest)
        behind = [rf"(?<={re.escape(e[0])}){re.escape(e[1])}" for e in self.anywhere if not isinstance(e, str)]
        edges = [*(r"\A" + re.escape(text) for text in self.start), *(re.escape(text) + r"\z" for text in self.end)]
        return "|".join([*behind, *map(re.escape, first), *edges])


class FormatFiles(Protocol):
    """What a tokenizer folder needs to know of a chat format."""

    @property
    def name(self) -> str: ...
    @property
    def special_tokens(self) -> Sequence[str]: ...
    @property
    def bos(self) -> str | None: ...
    @property
    def eos(self) -> str | None: ...
    @property
    def template(self) -> str: ...
    @property
    def borders(self) -> Borders: ...
    def to_yaml(self) -> str: ...


class TokenizerConfig(Config):
    """How a tokenizer is trained."""

    vocab_size: int = Field(default=4096, ge=260, le=2_000_000)
    """Tokens in all, special tokens and the 256 bytes included. Fewer come out where the text gives no more."""
    format: str = "k2"
    """The chat format whose special tokens, template and borders the tokenizer carries."""
    digits: Literal["single"] = "single"
    """Every digit is a token of its own."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair is merged only if it occurs at least so often."""


def train_tokenizer(texts: Iterator[str], config: TokenizerConfig, format: FormatFiles, out_dir: Path) -> dict[str, Any]:
    """Train on `texts` and write tokenizer.json, tokenizer_config.json and chat_format.yaml into `out_dir`. Same input, same bytes.

    Returns:
        metrics: documents, characters, vocab_size, special_tokens, and bytes_per_token of a sample of the text.

    Raises:
        UserError: no text at all, or a vocabulary too small for the bytes and the special tokens.
    """
    special = special_tokens(format)
    if config.vocab_size < 256 + len(special):
        raise UserError(
            f"a vocabulary of {config.vocab_size} cannot hold 256 bytes and {len(special)} special tokens",
            where="vocab_size",
            remedy=f"set it to {256 + len(special)} or more",
        )
    count = {"documents": 0, "characters": 0}
    sample: list[str] = []

    def counted() -> Iterator[list[str]]:
        batch: list[str] = []
        for text in texts:
            count["documents"] += 1
            count["characters"] += len(text)
            if len(sample) < 200:
                sample.append(text[:2000])
            batch.append(text)
            if len(batch) == _BATCH:
                yield batch
                batch = []
        yield batch

    backend = untrained(format)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[_special(name) for name in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    try:
        backend.train_from_iterator(counted(), trainer)
    except (TypeError, UnicodeEncodeError):
        raise UserError("a text holds a lone surrogate, which is not Unicode", remedy="repair the text's encoding") from None
    if not count["characters"]:
        raise UserError("there is no text to train the tokenizer on", remedy="check the sources' paths and filters")
    tokenizer = save(backend, format, out_dir)
    tokens = sum(map(len, tokenizer.encode_batch(sample)))
    size = sum(len(text.encode()) for text in sample)
    return {
        **count,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": len(special),
        "bytes_per_token": round(size / max(tokens, 1), 4),
    }


def byte_tokenizer(format: FormatFiles) -> Tokenizer:
    """A tokenizer of the 256 bytes and the format's special tokens, in memory: for looking at a format without a checkpoint."""
    backend = untrained(format)
    backend.train_from_iterator(
        [],
        trainers.BpeTrainer(
            vocab_size=0,
            special_tokens=[_special(name) for name in special_tokens(format)],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return Tokenizer(backend, folder_config(format))


def special_tokens(format: FormatFiles) -> list[str]:
    """The special tokens of a tokenizer for `format`, in the order of their ids; the last is for padding and nothing else.

    Padding has a token of its own because a pad token that is also the stop token gets the stop token masked out of the loss elsewhere.
    """
    names = [*format.special_tokens, format.bos, format.eos, PAD]
    return list(dict.fromkeys(name for name in names if name))


def untrained(format: FormatFiles) -> Backend:
    """The empty tokenizer: how text is cut before BPE, and how tokens become text."""
    backend = Backend(models.BPE())
    whole = [re.escape(text) for text in format.borders.strings()]
    words = [rf"\A(?:{'|'.join(whole)})\z", *_WORDS] if whole else list(_WORDS)
    steps: list[Any] = []
    if whole:
        steps.append(pre_tokenizers.Split(Regex(format.borders.pattern()), "isolated"))
    steps.append(pre_tokenizers.Split(Regex("|".join(words)), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def folder_config(format: FormatFiles) -> dict[str, Any]:
    """What tokenizer_config.json says. No bos is added to plain text by itself: the template writes it, hence never twice."""
    names = {"bos_token": format.bos, "eos_token": format.eos, "pad_token": PAD}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: name for key, name in names.items() if name},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        "chat_template": format.template,
    }


def save(backend: Backend, format: FormatFiles, out_dir: Path) -> Tokenizer:
    """Write the folder and give back the tokenizer that it holds."""
    out_dir.mkdir(parents=True, exist_ok=True)
    backend.encode_special_tokens = False
    backend.save(str(out_dir / "tokenizer.json"), pretty=True)
    config = folder_config(format)
    (out_dir / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (out_dir / "chat_format.yaml").write_text(format.to_yaml(), encoding="utf-8")
    return Tokenizer.load(out_dir)


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)
