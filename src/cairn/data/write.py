"""Rows to files that read back as the same rows: JSON Lines (packed by gzip or not) and Parquet. Streams; knows no reader.

A table gives every row of a column the same keys and fills the gaps with nulls, which would add nulls to tool schemas. So
nested values stand as JSON in strings there; the reader `messages` knows.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cairn.data.rows import Row
from cairn.errors import UserError

NESTED = ("messages", "chosen", "rejected", "ranked", "tools", "attributes", "meta")
PLAIN = ("text", "source", "language", "id")
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_GROUP = 1024


def row_line(row: Row) -> str:
    """A row as one line of JSON, its newline included. Equal rows give equal lines: the keys of the row itself keep their order."""
    return json.dumps(row, ensure_ascii=False, separators=(", ", ": "), allow_nan=False) + "\n"


def write_rows(rows: Iterable[Row], path: Path | str) -> int:
    """Write rows to a file that `read_rows` reads back unchanged. Nothing half-written is ever left under `path`.

    Returns:
        The number of rows.

    Raises:
        UserError: a suffix that is neither `.jsonl`, `.jsonl.gz` nor `.parquet`, or a folder that cannot be written to.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"cannot tell the format of '{path.name}'", where=str(path), remedy="end its name with " + ", ".join(SUFFIXES))
    aside = path.with_name(f".{path.name}.part")
    try:
        with open(aside, "wb") as file:
            count = _parquet(rows, file) if path.suffix == ".parquet" else _lines(rows, file, packed=path.suffix == ".gz")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        remedy = "check that the folder is there, writable and not full"
        raise UserError(f"cannot write the file: {error.strerror or error}", where=str(path), remedy=remedy) from None
    finally:
        aside.unlink(missing_ok=True)
    return count


def _lines(rows: Iterable[Row], file: IO[bytes], *, packed: bool) -> int:
    count = 0
    with _text(file, packed) as out:
        for count, row in enumerate(rows, start=1):  # noqa: B007 - the count is the result
            out.write(row_line(row))
    return count


@contextmanager
def _text(file: IO[bytes], packed: bool) -> Iterator[IO[str]]:
    # No name and no time in gzip's header: equal rows give equal bytes.
    raw: Any = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if packed else file
    out = io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
    yield out
    out.flush()
    out.detach()
    if packed:
        raw.close()


def _parquet(rows: Iterable[Row], file: IO[bytes]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in (*NESTED, *PLAIN)])
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        group: list[dict[str, str | None]] = []
        for row in rows:
            group.append(_flat(row))
            count += 1
            if len(group) == _GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))
    return count


def _flat(row: Row) -> dict[str, str | None]:
    nested = {key: json.dumps(row[key], ensure_ascii=False, allow_nan=False) for key in NESTED if key in row}
    return {**nested, **{key: row[key] for key in PLAIN if key in row}}
