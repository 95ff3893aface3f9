"""`cairn generate`: answers a file of prompts. Reads and writes files; the answering is `cairn.generate.rows`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.cli.sampling import Dtype, FormatName, MaxNewTokens, MinP, Penalty, Seed, Stop, Temperature, TopK, TopP, make_sampling
from cairn.cli.show import Json, StoreDir, err, open_store, print_json
from cairn.errors import UserError

if TYPE_CHECKING:
    from cairn.generate.load import Loaded
    from cairn.generate.sampling import Sampling


def command(
    ref: Annotated[str, typer.Argument(help="recipe/stage, a folder, the start of a key, or a checkpoint's name on the hub.")],
    source: Annotated[Path, typer.Option("--in", help="Rows of dialogues or texts, in any form that `cairn check` reads.")],
    target: Annotated[Path, typer.Option("--out", help="JSON Lines file to write: each row with its answer, reason and ids.")],
    reader: Annotated[str, typer.Option("--reader", help="How to read the file.")] = "auto",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Answer so many rows.", show_default=False)] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows answered together at most.")] = 64,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Answer each row alone, so that no answer can depend on other rows. Slower.")
    ] = False,
    format: FormatName = None,
    dtype: Dtype = "float32",
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Answer a file of prompts.

    A dialogue that ends with an assistant message is answered anew; its own last message stands as "reference" in the output.
    An interrupted run goes on where it was when the same command is given again.

    \b
    Example:
        cairn generate pebble/chat --in questions.jsonl --out answers.jsonl --max-new-tokens 64
    """
    import time

    from cairn.ledger.progress import make_progress
    from cairn.pipeline.resolve import model_folder

    sampling = make_sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    folder = model_folder(ref, open_store(store))
    if not target.parent.is_dir():
        raise UserError("no such folder", where=str(target.parent), remedy="make it, or name another file with --out")
    if source.exists() and target.exists() and source.samefile(target):
        raise UserError("--in and --out are the same file", where=str(target), remedy="name another file with --out")
    total = sum(1 for _ in _rows(source, reader, limit))  # every row is checked before any is answered
    from cairn.generate.load import load

    loaded = load(folder, format=format, dtype=dtype, max_batch=batch, deterministic=deterministic)
    options = {"sampling": sampling.model_dump(), "stop": stop or [], "batch": loaded.engine.max_batch, "format": format, "dtype": dtype}
    partial = _Partial(target, {**options, "model": _stamps(folder), "rows": [_digest(source), reader, limit]})
    progress = make_progress("generate")
    progress.start(total, "rows", partial.found)
    begun = time.perf_counter()
    try:
        tokens = _answer(loaded, source, reader, limit, sampling, stop or [], partial, progress)
    finally:
        progress.close()
    seconds = time.perf_counter() - begun
    reasons = partial.finish()
    report = {
        "rows": total,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "reasons": reasons,
        "resumed": partial.found,
        "out": str(target),
    }
    if json:
        print_json(report)
        return
    ends = ", ".join(f"{name} {count}" for name, count in sorted(reasons.items()))
    figures = f"{tokens:,} tokens in {seconds:.1f} s, {report['tokens_per_second']:,.0f} tokens/s"
    err().print(f"{total} rows to {target}: {figures} ({ends})", markup=False)


def _rows(source: Path, reader: str, limit: int | None) -> Iterator[dict[str, Any]]:
    from itertools import islice

    return islice(_prompts(source, reader), limit)


def _prompts(source: Path, reader: str) -> Iterator[dict[str, Any]]:
    """Checked rows, like `read_rows` gives them, but a dialogue may lack its answer: that is what is asked for here."""
    from cairn.data.readers import detect_reader, error_of, readers
    from cairn.data.readers.base import get_reader
    from cairn.data.readers.files import layout, list_files, read_documents, read_records
    from cairn.data.rows import check_row

    readers()  # makes every reader known
    for name, file in list_files(source):
        chosen = get_reader(detect_reader(file) if reader == "auto" else reader)
        documents = chosen.kind == "documents"
        records = read_documents(file, chosen.encoding, None) if documents else read_records(file, layout(file), chosen.encoding)
        for outcome in chosen.rows(records):
            row = outcome.row
            if row is not None:
                row.setdefault("id", f"{name}:{outcome.number}")
                outcome = replace(outcome, problem=next(iter(check_row(_answered(row), outcome.number)), None))
            if outcome.problem is not None:
                raise error_of(outcome, file)
            if row is not None:
                yield row


def _answered(row: dict[str, Any]) -> dict[str, Any]:
    """A row that asks, as it would be with an answer: the check of rows is made for rows to learn from."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or (isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"):
        return row
    return {**row, "messages": [*messages, {"role": "assistant", "content": "-"}]}


def _answer(
    loaded: Loaded, source: Path, reader: str, limit: int | None, sampling: Sampling, stop: list[str], partial: _Partial, progress: Any
) -> int:
    """Answer the rows that are not answered yet; gives the number of tokens generated."""
    from itertools import islice

    from cairn.generate.rows import WINDOW, answer_rows

    rows = islice(_rows(source, reader, limit), partial.found, None)
    made = 0

    def report(done: int, tokens: int) -> None:
        nonlocal made
        made = tokens
        progress.update(partial.found + done, tokens=tokens)

    answers = answer_rows(loaded, rows, sampling, stop_strings=stop, first=partial.found, window=WINDOW, on_progress=report)
    while held := list(islice(answers, WINDOW)):
        partial.append(held)
    return made


def _digest(source: Path) -> str:
    from cairn.ledger.digest import file_digest, folder_digest

    return folder_digest(source) if source.is_dir() else file_digest(source)


def _stamps(folder: Path) -> list[list[Any]]:
    """Name, size and time of every file of a model: enough to see, without reading gigabytes, that it is still the same."""
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(folder.iterdir()) if f.is_file()]


class _Partial:
    """The output while it grows: `<out>.partial` holds a line that says what it is of, and then whole windows of rows.

    `found` rows of an earlier, interrupted run of the same work are kept; anything else there is written over.
    """

    def __init__(self, target: Path, work: Any) -> None:
        from cairn.ledger.digest import json_digest

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
        import json

        self._write("ab", b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))

    def finish(self) -> dict[str, int]:
        """Put the rows into place under their own name; gives how often each reason stands in them."""
        import json
        from collections import Counter

        from cairn.ledger.store import write_atomically

        body = self.path.read_bytes()[len(self._head) :]
        write_atomically(self.target, body)
        self.path.unlink()
        return dict(Counter(json.loads(line)["reason"] for line in body.splitlines()))

    def _write(self, mode: str, data: bytes) -> None:
        import os

        try:
            with self.path.open(mode) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            remedy = "free some space, or name another file with --out"
            raise UserError(f"cannot write: {error.strerror}", where=str(self.path), remedy=remedy) from None
