"""How often a training goes through each of its sources, for plans: a guess from the first rows of files of JSON lines.

Knows sources, and the tokenizer where it is there already. The training itself counts exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from cairn.data.mix import passes
from cairn.data.rows import messages_of
from cairn.data.sources import Source
from cairn.model.adapter_config import model_place
from cairn.pipeline.training import TrainConfig

SAMPLE = 50
"""Rows that are read of each file."""
HEAD = 1 << 18
"""Bytes of a file whose lines tell how long a row is."""
BYTES = 4.0
"""Bytes that a token stands for in a large vocabulary."""
AROUND = 5
"""Tokens that a format puts around a message."""


def planned_passes(config: TrainConfig, inputs: dict[str, Any]) -> dict[str, float] | None:
    """About how often each source is gone through, by name; None where something is not known yet: a file that another stage
    has still to make out of more than one file, or one that has no lines.
    """
    if config.shares is not None or config.asks:
        return None
    count = _counter(config, inputs)
    counts, lengths = [], []
    for source in config.data:
        found = _documents(source, inputs, count, config.sequence_length)
        if found is None:
            return None
        counts.append(found[0])
        lengths.append(found[1])
    tokens = float(config.total_steps * config.step_tokens)
    told = passes(tokens, counts, lengths, [source.weight for source in config.data])
    return {source.name: value for source, value in zip(config.data, told, strict=True)}


def start_folder(config: TrainConfig, inputs: dict[str, Any]) -> Path | None:
    """The folder of the model that is trained further, where it is there already."""
    if config.checkpoint is not None:
        return Path(config.checkpoint)
    artifact = inputs.get(str(config.init))
    return model_place(artifact.path()) if artifact is not None else None


def tokenizer_folder(config: TrainConfig, inputs: dict[str, Any]) -> Path | None:
    """The folder of the tokenizer: of the stage that the recipe names, or of the model that is trained further; None before it is there."""
    if config.tokenizer is None:
        return start_folder(config, inputs)
    artifact = inputs.get(config.tokenizer)
    return Path(artifact.path()) if artifact is not None else None


def _counter(config: TrainConfig, inputs: dict[str, Any]) -> Callable[[str], float]:
    """Tokens of a text: counted where the tokenizer is there, or guessed from the vocabulary that it is to have."""
    folder = tokenizer_folder(config, inputs)
    if folder is not None:
        from cairn.tokenizer.load import Tokenizer

        encode = Tokenizer.load(folder).encode
        return lambda text: float(len(encode(text)))
    planned = getattr(getattr(inputs, "configs", {}).get(config.tokenizer), "vocab_size", None)
    each = BYTES if planned is None else min(BYTES, max(1.0, 1.0 + 0.65 * math.log2(planned / 256)))
    return lambda text: len(text.encode()) / each


def _documents(source: Source, inputs: dict[str, Any], count: Callable[[str], float], longest: int) -> tuple[float, float] | None:
    """(how many, their mean length in tokens) of a source's documents; None where that is not known."""
    place = _place(source, inputs)
    if place is None or place.suffix != ".jsonl" or not place.is_file():
        return None
    with open(place, "rb") as file:
        head = file.read(HEAD)
    if b"\n" not in head:
        return None
    rows = place.stat().st_size / len(head) * len([line for line in head.splitlines() if line.strip()])
    rows = min(rows, source.limit or rows)
    documents = tokens = 0.0
    sample = list(islice(source.read(place), SAMPLE))
    for row in sample:
        if "text" in row:
            size = count(row["text"])
            pieces = max(1.0, -(-size // longest))
        else:
            messages = messages_of(row)
            size = sum(count(str(message.get("content") or "")) + AROUND for message in messages)
            size, pieces = min(size, longest), 1.0
        documents += pieces
        tokens += size
    return (documents / len(sample) * rows, tokens / documents) if documents and tokens else None


def _place(source: Source, inputs: dict[str, Any]) -> Path | None:
    """Where a source's rows lie, or those that a stage of kind data will make them from."""
    if source.path is not None:
        return Path(source.path)
    artifact = inputs.get(str(source.stage))
    if artifact is not None:
        return Path(artifact.path(str(source.file)))
    config = getattr(inputs, "configs", {}).get(source.stage)
    made = [s for s in getattr(config, "sources", []) if f"{s.name}.train.jsonl" == source.file and s.path is not None]
    return Path(made[0].path) if made else None
