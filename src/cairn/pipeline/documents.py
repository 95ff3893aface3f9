"""Rows of sources to documents in tokens, for stages that put them through a model; and where a reference lies. Knows no stage."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

from cairn.errors import UserError
from cairn.ledger.store import Artifact
from cairn.pipeline.stage import Context

REFERENCE, TEACHER = "reference.safetensors", "teacher.safetensors"


def encode_sources(
    context: Context, renderer: Any, tokenizer: Any, objective: str, *, mismatched: bool = False
) -> tuple[list[Any], list[Any], dict[str, Any], dict[str, Any]]:
    """Every source's documents, the row that each came from (from 1), the mix table and what became of the rows.

    The stage's configuration has `data`, `sequence_length` and `overlong`.
    """
    from cairn.data.answers import with_mismatched
    from cairn.data.encode import Counters, encode_rows
    from cairn.data.stats import MixTable

    config = context.config
    table = MixTable(tokenizer=tokenizer, renderer=renderer)
    encoded: list[list[Any]] = []
    origins: list[Any] = []
    counters: dict[str, Any] = {}
    context.progress.start(len(config.data), "sources")
    for number, source in enumerate(config.data):
        path, count, name = context.place(source), Counters(), source.name
        limits: dict[str, Any] = {"max_length": config.sequence_length, "overlong": config.overlong, "objective": objective}
        told: dict[str, Any] = {"counters": count, "where": str(path), "on_row": lambda row, n, name=name: table.add(row, name, tokens=n)}
        numbers = array("q")
        documents = []
        for document in encode_rows(source.read(path), renderer, tokenizer, **limits, **told):
            documents.append(document)
            numbers.append(count.rows)
        encoded.append(with_mismatched(documents, config.sequence_length, str(path)) if mismatched else documents)
        origins.append(numbers)
        counters[source.name] = count.as_dict()
        if count.dropped_overlong and objective == "answers":
            context.progress.note(
                f"{name}: {count.dropped_overlong} of {count.rows} rows left out: their prompt leaves no room for an answer in "
                f"{config.sequence_length} tokens, or no difference between two"
            )
        elif lost := count.losses():
            context.progress.note(f"{name}: {lost}, being longer than {config.sequence_length} tokens")
        context.progress.update(number + 1, rows=count.rows)
    return encoded, origins, table.as_dict(), counters


def reference_place(stage: Artifact | None, draft: Path) -> Path:
    """Where a training's reference lies, or is to be written: in the artifact of a stage `reference`, or in its own draft.

    Raises:
        UserError: that stage has no such file.
    """
    if stage is None:
        return draft / REFERENCE
    if not stage.path(REFERENCE).is_file():
        what = f"the stage '{stage.record.name}' has no {REFERENCE}"
        raise UserError(what, where="reference", remedy="name a stage of kind reference")
    return stage.path(REFERENCE)
