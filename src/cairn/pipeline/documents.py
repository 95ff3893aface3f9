"""Rows of sources to documents in tokens, for stages that put them through a model; and where a reference lies. Knows no stage."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.chat.format import Attribute
from cairn.data.labels import answers
from cairn.data.rows import Row
from cairn.data.shares import Part, weights
from cairn.data.sources import Source
from cairn.errors import UserError
from cairn.ledger.store import Artifact
from cairn.pipeline.stage import Context

REFERENCE, TEACHER = "reference.safetensors", "teacher.safetensors"


def encode_sources(
    context: Context, renderer: Any, tokenizer: Any, objective: str, *, sources: Sequence[Source] | None = None, mismatched: bool = False,
    on_row: Callable[[Source, Row], None] = lambda source, row: None,
) -> tuple[list[Any], list[Any], dict[str, Any], dict[str, Any]]:
    """Every source's documents, the row that each came from (from 1), the mix table and what became of the rows.

    The stage's configuration has `data` (unless `sources` are given), `sequence_length` and `overlong`; `on_row` is told every row before
    it is encoded.
    """
    from cairn.data.answers import with_mismatched
    from cairn.data.encode import Counters, encode_rows
    from cairn.data.stats import MixTable

    config = context.config
    sources = config.data if sources is None else sources
    table = MixTable(tokenizer=tokenizer, renderer=renderer)
    encoded: list[list[Any]] = []
    origins: list[Any] = []
    counters: dict[str, Any] = {}
    context.progress.start(len(sources), "sources")
    for number, source in enumerate(sources):
        path, count, name = context.place(source), Counters(), source.name
        limits: dict[str, Any] = {"max_length": config.sequence_length, "overlong": config.overlong, "objective": objective}
        told: dict[str, Any] = {"counters": count, "where": str(path), "on_row": lambda row, n, name=name: table.add(row, name, tokens=n)}
        numbers = array("q")
        documents = []
        for document in encode_rows(_told(source, path, on_row), renderer, tokenizer, **limits, **told):
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


def _told(source: Source, path: Path, on_row: Callable[[Source, Row], None]) -> Iterator[Row]:
    for row in source.read(path):
        on_row(source, row)
        yield row


class Look:
    """What a training has to know of its rows beyond their ids: languages and kinds, and that labels are all there.

    Args:
        labelled: the sources whose answers must have every attribute.
        schema: the attributes.
        margins: whether every row must say its `meta.margin`.
    """

    def __init__(self, labelled: Sequence[str], schema: Mapping[str, Attribute], margins: bool = False) -> None:
        self.labelled, self.schema, self.margins = frozenset(labelled), schema, margins
        self.languages: dict[str, set[str | None]] = {}
        self.kinds: dict[str, set[str]] = {}

    def __call__(self, source: Source, row: Row) -> None:
        """Raises:
        UserError: an answer of a labelled source lacks an attribute: it would be learnt as if it had the default. Or a row lacks its
            margin, which would be learnt as 0.
        """
        self.languages.setdefault(source.name, set()).add(row.get("language"))
        self.kinds.setdefault(source.name, set()).add("texts" if "text" in row else "dialogues")
        if self.margins and "margin" not in (row.get("meta") or {}):
            where = f"{source.name}, row {row.get('id', '?')}, meta.margin"
            remedy = "write by how much the better answer is better, or give reward.margin a number"
            raise UserError("the row has no margin, and reward.margin asks for each row's own", where=where, remedy=remedy)
        if source.name not in self.labelled:
            return
        for answer in answers(row, self.schema):
            missing = [name for name in self.schema if name not in answer.labels]
            if missing:
                where = f"{source.name}, row {row.get('id', '?')}, messages[{answer.user}].attributes"
                remedy = "let a stage of kind label fill it in, or take the source out of labelled"
                raise UserError(f"the attribute '{missing[0]}' is missing", where=where, remedy=remedy)

    def weights(self, config: Any, encoded: Sequence[Sequence[Any]]) -> list[float]:
        """How often a row of each source is drawn: what the sources say, or what reaches `config.shares`."""
        if config.shares is None:
            return [source.weight for source in config.data]
        parts = [
            Part(s.name, s.weight, sum(map(len, own)) / len(own), frozenset(self.languages[s.name]), frozenset(self.kinds[s.name]))
            for s, own in zip(config.data, encoded, strict=True)
        ]
        return weights(parts, config.shares)

    def groups(self) -> dict[str, tuple[str, str | None]]:
        """{source: (kind, language)} where each is one; the language None where it is not."""
        one = {name: next(iter(found)) if len(found) == 1 else None for name, found in self.languages.items()}
        return {name: (next(iter(kinds)), one[name]) for name, kinds in self.kinds.items()}


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
