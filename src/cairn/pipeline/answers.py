"""A file of rows to a file of answers: read, asked, written, and resumed after an interruption. Knows folders and files; no verb.

The output grows in `<out>.partial`, in whole windows of rows, and gets its own name when all rows are answered.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.data.readers import read_rows
from cairn.errors import UserError
from cairn.ledger.digest import file_digest, folder_digest, json_digest
from cairn.ledger.progress import Progress
from cairn.ledger.store import write_atomically

if TYPE_CHECKING:
    from cairn.generate.grammar import Hold
    from cairn.generate.load import Loaded
    from cairn.generate.sampling import Sampling


def answer_file(
    model: Path,
    source: Path,
    target: Path,
    progress: Progress,
    *,
    sampling: Sampling,
    stop: Sequence[str] = (),
    hold: Hold | None = None,
    reader: str = "auto",
    limit: int | None = None,
    batch: int = 64,
    deterministic: bool = False,
    format: str | None = None,
    attributes: Mapping[str, int] | None = None,
    dtype: str = "float32",
    weights: str | None = None,
    drafts: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Answer the rows of a file. Where the same was begun before and interrupted, it goes on from there.

    Args:
        model: the model's folder.
        source: rows in any form that a reader knows; a dialogue may end with a question or with the answer that it is to be compared with.
        target: the file to write.
        progress: is told of answered rows and generated tokens.
        sampling: how tokens are chosen.
        stop: texts that end an answer.
        hold: what the answers are held to.
        reader: how the file is read.
        limit: answer at most so many rows, the first ones.
        batch: rows answered together at most.
        deterministic: compute each row by itself, so that no answer can depend on others.
        format: a shipped chat format in place of the model's own.
        attributes: what the answers are asked to be like, whatever the rows say of it; the rows' other attributes stay.
        dtype: precision of the weights.
        weights, drafts, say: as `cairn.generate.load.load` takes them.

    Returns:
        {"rows", "tokens", "seconds", "tokens_per_second", "reasons", "resumed", "deterministic", "out"}.

    Raises:
        UserError: a bad row (before anything is answered), a model that cannot be loaded, or a file that cannot be written.
    """
    if not target.parent.is_dir():
        raise UserError("no such folder", where=str(target.parent), remedy="make it, or name another file with --out")
    if source.exists() and target.exists() and source.samefile(target):
        raise UserError("--in and --out are the same file", where=str(target), remedy="name another file with --out")
    total = sum(1 for _ in _rows(source, reader, limit))  # every row is checked before any is answered
    from cairn.generate.load import load

    loaded = load(
        model, format=format, dtype=dtype, max_batch=batch, deterministic=deterministic, weights=weights, drafts=drafts, say=say
    )
    how: dict[str, Any] = {"batch": batch, "deterministic": deterministic, "format": format, "dtype": dtype, "weights": weights}
    how |= {"attributes": dict(attributes)} if attributes else {}
    options = {"sampling": sampling.model_dump(), "stop": list(stop), "hold": hold and asdict(hold), **how}
    partial = _Partial(target, {**options, "model": _stamps(model), "rows": [_digest(source), reader, limit]})
    progress.start(total, "rows", partial.found)
    begun = time.perf_counter()
    try:
        rows = (_asked(row, attributes or {}) for row in islice(_rows(source, reader, limit), partial.found, None))
        tokens = _answer(loaded, rows, sampling, stop, hold, partial, progress)
    finally:
        progress.close()
    seconds = time.perf_counter() - begun
    return {
        "rows": total,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "reasons": partial.finish(),
        "resumed": partial.found,
        "deterministic": loaded.engine.deterministic,
        "out": str(target),
    }


def _rows(source: Path, reader: str, limit: int | None) -> Iterator[dict[str, Any]]:
    return islice(read_rows(source, reader, prompts=True), limit)


def _asked(row: dict[str, Any], attributes: Mapping[str, int]) -> dict[str, Any]:
    """The row with attributes at its last user turn, where they go before the row's; plain text as it is."""
    users = [i for i, message in enumerate(row.get("messages", ())) if message["role"] == "user"]
    if not users or not attributes:
        return row
    messages = list(row["messages"])
    last = messages[users[-1]]
    messages[users[-1]] = {**last, "attributes": {**(last.get("attributes") or {}), **attributes}}
    return {**row, "messages": messages}


def _answer(
    loaded: Loaded,
    rows: Iterator[dict[str, Any]],
    sampling: Sampling,
    stop: Sequence[str],
    hold: Hold | None,
    partial: _Partial,
    progress: Progress,
) -> int:
    """Answer rows and write them down; gives the number of tokens generated."""
    from cairn.generate.rows import FREE, WINDOW, answer_rows

    made = 0

    def report(done: int, tokens: int) -> None:
        nonlocal made
        made = tokens
        progress.update(partial.found + done, tokens=tokens)

    answers = answer_rows(
        loaded, rows, sampling, stop_strings=stop, hold=hold or FREE, first=partial.found, window=WINDOW, on_progress=report
    )
    while held := list(islice(answers, WINDOW)):
        partial.append(held)
    return made


def _digest(source: Path) -> str:
    return folder_digest(source) if source.is_dir() else file_digest(source)


def _stamps(folder: Path) -> list[list[Any]]:
    """Name, size and time of every file of a model: enough to see, without reading gigabytes, that it is still the same."""
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(folder.iterdir()) if f.is_file()]


class _Partial:
    """The output while it grows: `<out>.partial` holds a line that says what it is of, and then whole windows of rows.

    `found` rows of an earlier, interrupted run of the same work are kept; anything else there is written over.
    """

    def __init__(self, target: Path, work: Any) -> None:
        self.target, self.path = target, target.with_name(target.name + ".partial")
        self._head = json_digest(work).encode() + b"\n"
        self.found = 0
        lines = self._whole_lines()
        if lines is None:
            self._write("wb", self._head)
        else:
            self.found = len(lines) - 1

    def _whole_lines(self) -> list[bytes] | None:
        """The lines up to the last whole window, what follows cut off; None where this is not of the same work."""
        from cairn.generate.rows import WINDOW

        if not self.path.is_file():
            return None
        lines = self.path.read_bytes().splitlines(keepends=True)
        if not lines or lines[0] != self._head:
            return None
        whole = [line for line in lines[1:] if line.endswith(b"\n")]
        # Windows are batched as a whole: to begin inside one would change its answers in their last bits.
        lines = lines[: 1 + len(whole) // WINDOW * WINDOW]
        self._write("wb", b"".join(lines))
        return lines

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add rows, and see to it that they are on the disk."""
        self._write("ab", b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))

    def finish(self) -> dict[str, int]:
        """Put the rows into place under their own name; gives how often each reason stands in them."""
        body = self.path.read_bytes()[len(self._head) :]
        write_atomically(self.target, body)
        self.path.unlink()
        return dict(Counter(json.loads(line)["reason"] for line in body.splitlines()))

    def _write(self, mode: str, data: bytes) -> None:
        try:
            with self.path.open(mode) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            remedy = "free some space, or name another file with --out"
            raise UserError(f"cannot write: {error.strerror}", where=str(self.path), remedy=remedy) from None
