"""Sources to files to train on and files held out: drops what is bad or there twice, and keeps the two sides apart. Streams.

Which side a row falls on is a function of the seed and of its normalised question (of the text itself for plain text),
whichever source it came from, so that equal questions never part. What is dropped is written down with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from cairn.data.readers import error_of, read_outcomes
from cairn.data.readers.base import Outcome
from cairn.data.rows import Row, content_key, question_key
from cairn.data.sources import Source
from cairn.data.write import row_line
from cairn.errors import UserError
from cairn.ledger import seeds

DROPPED = "dropped.jsonl"
SUMMARY = "summary.json"


class HeldSource(Source):
    """A source with a share of its own to hold out."""

    holdout: float | None = Field(default=None, ge=0, le=1)
    """The share of this source's rows that is held out, instead of the stage's: 0 for none, 1 for a test set."""


@dataclass
class Counts:
    """What became of a source's rows."""

    rows: int = 0
    """Rows of the source: all below together."""
    train: int = 0
    heldout: int = 0
    bad: int = 0
    """Dropped because something is wrong with them."""
    skipped: int = 0
    """Not used because the file itself marks them so."""
    duplicates: int = 0
    """Dropped because an earlier row says the same."""
    overlap: int = 0
    """Removed from training because their question is among the held-out ones."""


@dataclass
class Prepared:
    """The state of one preparation."""

    seen: dict[str, str] = field(default_factory=dict)
    """Content key → the first row that had it."""
    heldout: set[str] = field(default_factory=set)
    """Question keys (content keys for plain text) of held-out rows."""
    counts: dict[str, Counts] = field(default_factory=dict)


def prepare(
    sources: Sequence[tuple[HeldSource, Path]],
    out: Path,
    *,
    seed: int,
    holdout: float,
    dedup: bool,
    bad_rows: Literal["refuse", "drop"],
    on_row: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Write `<name>.train.jsonl`, `<name>.heldout.jsonl` (either only where it can have rows), `dropped.jsonl` and `summary.json`.

    Args:
        sources: each source with the place of its file.
        out: the folder to write into; files of these names there are replaced.
        seed: of the choice of sides.
        holdout: the share of rows held out of sources that name none.
        dedup: drop rows whose normalised content came before, in whichever source.
        bad_rows: stop at the first bad row, or drop and count them.
        on_row: is told the number of rows read so far.

    Returns:
        What `summary.json` holds: counts of each source, and the check that no question stands on both sides.

    Raises:
        UserError: a bad row (unless dropped), a source without any good row, or two sources of one name.
    """
    names = [source.name for source, _ in sources]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise UserError(f"two sources are named '{twice}'", where="sources", remedy="rename one: each source has its own files")
    done, total = Prepared(), 0
    with open(out / DROPPED, "w", encoding="utf-8", newline="\n") as dropped:
        for source, path in sources:
            share = holdout if source.holdout is None else source.holdout
            counts = done.counts[source.name] = Counts()
            with ExitStack() as files:
                train, held = (_open(files, out, source.name, side) for side in ("train.part", "heldout"))
                for row in _good_rows(source, path, counts, dropped, bad_rows):
                    if dedup and _is_duplicate(row, source, counts, dropped, done):
                        continue
                    key = question_key(row) or content_key(row)
                    if seeds.uniform(seed, "holdout", int(key[:16], 16)) < share:
                        counts.heldout += 1
                        done.heldout.add(key)
                        held.write(row_line(row))
                    else:
                        counts.train += 1
                        train.write(key + row_line(row))
                    on_row(total + counts.rows)
            total += counts.rows
            if not counts.train + counts.heldout + counts.duplicates:
                remedy = f"look at it with `cairn check {path}`"
                raise UserError("no row of the source can be used", where=f"{source.name}, {path}", remedy=remedy)
        both = sum(_finish(source, out, holdout, done, dropped) for source, _ in sources)
    summary = {
        "sources": {name: asdict(counts) for name, counts in done.counts.items()},
        "overlap": {
            "heldout_questions": len(done.heldout),
            "removed_from_train": sum(c.overlap for c in done.counts.values()),
            "questions_on_both_sides": both,
        },
    }
    _write(out / SUMMARY, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
    return summary


def _open(files: ExitStack, out: Path, name: str, side: str) -> IO[str]:
    return files.enter_context(open(out / f"{name}.{side}.jsonl", "w", encoding="utf-8", newline="\n"))


def _good_rows(source: HeldSource, path: Path, counts: Counts, dropped: IO[str], bad_rows: str) -> Iterator[Row]:
    """The source's good rows; the others are counted and written down."""
    good = 0
    options: dict[str, Any] = {"language": source.language, "encoding": source.encoding, "separator": source.separator}
    for outcome in read_outcomes(path, source.reader, source=source.name, **options):
        if outcome.problem and (bad_rows == "refuse" or outcome.number == 0):
            raise error_of(outcome, path)
        counts.rows += 1
        if outcome.row is not None:
            good += 1
            yield outcome.row
        else:
            counts.bad += outcome.problem is not None
            counts.skipped += outcome.problem is None
            dropped.write(_dropped_line(source.name, outcome))
        if good == source.limit:
            return


def _dropped_line(name: str, outcome: Outcome) -> str:
    told: Row = {"source": name, **({"file": outcome.file} if outcome.file else {}), "row": outcome.number}
    if outcome.problem:
        told |= {"why": outcome.problem.problem, "field": outcome.problem.field}
    else:
        told |= {"why": f"skipped: {outcome.skipped}"}
    # Ill text may be the very problem: escapes keep the report readable by everyone.
    return json.dumps(told, ensure_ascii=True) + "\n"


def _is_duplicate(row: Row, source: HeldSource, counts: Counts, dropped: IO[str], done: Prepared) -> bool:
    key = content_key(row)
    first = done.seen.get(key)
    if first is None:
        done.seen[key] = f"{source.name} {row['id']}"
        return False
    counts.duplicates += 1
    dropped.write(json.dumps({"source": source.name, "id": row["id"], "why": f"the same as {first}"}, ensure_ascii=False) + "\n")
    return True


def _finish(source: HeldSource, out: Path, holdout: float, done: Prepared, dropped: IO[str]) -> int:
    """Write the training file without rows whose question is held out; give the number of questions found on both sides after that."""
    counts, share = done.counts[source.name], holdout if source.holdout is None else source.holdout
    part, train = out / f"{source.name}.train.part.jsonl", out / f"{source.name}.train.jsonl"
    kept: set[str] = set()
    with open(part, encoding="utf-8", newline="\n") as rows, open(train, "w", encoding="utf-8", newline="\n") as file:
        for line in rows:
            key, text = line[:32], line[32:]
            if key in done.heldout:
                counts.overlap += 1
                counts.train -= 1
                told = {"source": source.name, "id": json.loads(text)["id"], "why": "its question is held out"}
                dropped.write(json.dumps(told, ensure_ascii=False) + "\n")
            else:
                file.write(text)
                kept.add(key)
    part.unlink()
    if share == 1:
        train.unlink()
    if share == 0:
        (out / f"{source.name}.heldout.jsonl").unlink()
    return len(kept & done.heldout)


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
