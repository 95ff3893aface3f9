"""Files as streams of records: JSON Lines, JSON lists, CSV, Parquet and plain text, packed by gzip or bzip2 or not.

Never holds more than one record (one batch of records for Parquet) and a buffer. Knows no meaning of a record.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cairn.data.readers.base import Record
from cairn.data.rows import WHOLE, Problem
from cairn.errors import UserError

CHUNK = 1 << 16
_PACKED = {".gz": gzip.open, ".bz2": bz2.open}
_BROKEN = (OSError, EOFError, zlib.error)
"""What a file raises whose packing is damaged or that cannot be read on."""
_JSON_REMEDY = "write one JSON object a line, or a JSON list of objects"


def list_files(path: Path) -> list[tuple[str, Path]]:
    """(relative name, path) of a file, or of the files beneath a folder in the order of their names; hidden ones are left out.

    Raises:
        UserError: there is no such file, or the folder is empty.
    """
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        raise UserError("no such file or folder", where=str(path), remedy="check the path")
    found = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
    files = [(name, p) for name, p in found if not any(part.startswith(".") for part in name.split("/"))]
    if not files:
        raise UserError("the folder holds no files", where=str(path), remedy="check the path")
    return files


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked.

    Raises:
        UserError: it cannot be opened.
    """
    opener: Any = _PACKED.get(path.suffix.lower(), open)
    try:
        return opener(path, "rb")
    except OSError as error:
        what = f"cannot open the file: {error.strerror or error}"
        raise UserError(what, where=str(path), remedy="check the path and its permissions") from None


def suffix_of(path: Path) -> str:
    """The suffix that tells the kind of file, without that of a packer."""
    return (Path(path.stem) if path.suffix.lower() in _PACKED else path).suffix.lower()


def stem_of(name: str) -> str:
    """A file's name without its suffixes."""
    path = Path(name)
    return (Path(path.stem) if path.suffix.lower() in _PACKED else path).stem or "rows"


def head(path: Path, size: int = CHUNK) -> bytes:
    """The first bytes of a file.

    Raises:
        UserError: it cannot be opened, or its packing is broken.
    """
    with open_bytes(path) as file:
        try:
            return file.read(size)
        except _BROKEN as error:
            raise UserError(f"cannot unpack the file: {error}", where=str(path), remedy="fetch it again") from None


def layout(path: Path) -> str:
    """How a file's records lie: `parquet`, `csv`, `tsv`, `lines`, `list`, `values` (JSON values one after another), `text`, or `empty`."""
    suffix = suffix_of(path)
    start = head(path)
    if start.startswith(b"PAR1") or suffix == ".parquet":
        return "parquet"
    body = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if not body:
        return "empty"
    if suffix in (".csv", ".tsv"):
        return suffix[1:]
    first, more, _ = body.partition(b"\n")
    whole = _is_json(first)
    if body[:1] == b"[" and (suffix != ".txt" or b'"' in body[:CHUNK]):
        # One list a line is a broken JSON Lines file; a list over several lines, or alone in its line, is a list.
        return "lines" if suffix in (".jsonl", ".ndjson") and whole and more else "list"
    if suffix in (".jsonl", ".ndjson"):
        return "lines"
    if suffix == ".json":
        return "lines" if whole or body[:1] != b"{" else "values"
    return "lines" if body[:1] == b"{" and (whole or (not more and len(start) == CHUNK)) else "text"


def read_records(path: Path, how: str, encoding: str) -> Iterator[Record]:
    """The records of a file that lies as `layout` says (any of its answers but `text` and `empty`)."""
    if how == "parquet":
        return _parquet(path)
    if how in ("csv", "tsv"):
        return _table(path, encoding, "," if how == "csv" else "\t")
    return _lines(path, encoding) if how == "lines" else _values(path, encoding)


def read_documents(path: Path, encoding: str, separator: str | None) -> Iterator[Record]:
    """The documents of a file of plain text: the whole file, or what stands between two separators; empty ones are left out."""
    number, buffer = 0, ""
    pieces = _text(path, encoding)
    while True:
        try:
            piece = next(pieces, None)
        except _BadText as error:
            yield Record(number + 1, problem=Problem(number + 1, "text", error.what, error.remedy))
            return
        buffer += piece or ""
        *ready, buffer = buffer.split(separator) if separator else [buffer]
        if piece is None:
            ready.append(buffer)
        for document in ready:
            if document.strip():
                number += 1
                yield Record(number, document)
        if piece is None:
            return


class _BadText(UserError):
    """Bytes that are no text in the encoding."""


def _bad_bytes(error: UnicodeDecodeError, offset: int, encoding: str) -> _BadText:
    byte = error.object[error.start]
    remedy = "name the encoding, such as shift_jis (`encoding:` of the source, or --encoding), or repair the file"
    return _BadText(f"byte 0x{byte:02x} at {offset + error.start} is not {encoding}", remedy=remedy)


def _text(path: Path, encoding: str) -> Iterator[str]:
    """The file as text, piece by piece, with newlines as one sign."""
    _codec(encoding, path)
    decode = codecs.getincrementaldecoder("utf-8-sig" if encoding.lower().replace("_", "-") == "utf-8" else encoding)()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    done = 0
    with open_bytes(path) as file:
        while True:
            try:
                piece = file.read(CHUNK)
                text = decode.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                raise _bad_bytes(error, max(0, done - (len(error.object) - len(piece))), encoding) from None
            except _BROKEN as error:
                raise _BadText(f"cannot unpack the file: {error}", remedy="fetch it again") from None
            done += len(piece)
            text = newlines.decode(text, final=not piece)
            if text:
                yield text
            if not piece:
                return


def _lines(path: Path, encoding: str) -> Iterator[Record]:
    """One JSON value a line. A bad line is one bad record: the next line is read on."""
    _codec(encoding, path, lines=True)
    with open_bytes(path) as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline()
            except _BROKEN as error:
                yield _bad(number, f"cannot unpack the file: {error}", "fetch it again")
                return
            if not line:
                return
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                yield Record(number, json.loads(line.decode(encoding), parse_constant=_no_constant))
            except UnicodeDecodeError as error:
                problem = _bad_bytes(error, 0, encoding)
                yield _bad(number, f"{problem.what} (in this line)", problem.remedy)
            except (ValueError, RecursionError) as error:
                yield _bad(number, f"not JSON: {_told(error)}", _JSON_REMEDY)


def _values(path: Path, encoding: str) -> Iterator[Record]:
    """The items of one JSON list, or JSON values one after another, without ever holding more than one and a buffer."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    pieces = _text(path, encoding)
    buffer, place, number, ended = "", 0, 0, False
    opened: bool | None = None  # whether the file is a list; unknown until its first sign
    want = CHUNK

    while True:
        try:
            while not ended and len(buffer) - place < want:
                piece = next(pieces, None)
                ended = piece is None
                buffer, place = buffer[place:] + (piece or ""), 0
        except _BadText as error:
            yield _bad(number + 1, error.what, error.remedy)
            return
        place = _skip_space(buffer, place)
        if opened is None:
            opened = buffer.startswith("[", place)
            place = _skip_space(buffer, place + 1) if opened else place
            # A list may end at once.
            if opened and buffer.startswith("]", place):
                return
        if place == len(buffer) and ended:
            if opened:
                yield _bad(number + 1, "the file ends inside a JSON list", "complete the file: it was cut off")
            return
        try:
            value, end = decoder.raw_decode(buffer, place)
            after = _skip_space(buffer, end)
            if after == len(buffer) and not ended:
                raise json.JSONDecodeError("more may follow", buffer, end)  # a number could go on in the next piece
        except (ValueError, RecursionError) as error:
            if not ended and isinstance(error, json.JSONDecodeError) and _cut_off(error, buffer):
                want = max(want, 2 * (len(buffer) - place))  # doubling: a huge item is parsed a few times, not once a piece
                continue
            yield _bad(number + 1, f"not JSON: {_told(error)}", _JSON_REMEDY)
            return
        number, place, want = number + 1, after, CHUNK
        yield Record(number, value)
        if opened:
            if buffer.startswith(",", place):
                place += 1
            elif buffer.startswith("]", place):
                return
            else:
                problem = "the file ends inside a JSON list" if place == len(buffer) else "a comma is missing between two items of the list"
                yield _bad(number + 1, problem, "repair the file")
                return


def _cut_off(error: json.JSONDecodeError, buffer: str) -> bool:
    """Whether more text could mend the error. If not, reading on would only bring the whole file into memory."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 12


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\n\r":
        place += 1
    return place


def _table(path: Path, encoding: str, delimiter: str) -> Iterator[Record]:
    """The rows of a table whose first row names its columns."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(_table_lines(path, encoding), delimiter=delimiter, strict=True)
    number, names = 0, None
    while True:
        try:
            cells = next(reader, None)
        except (csv.Error, _BadText) as error:
            what, remedy = (error.what, error.remedy) if isinstance(error, _BadText) else (str(error), "repair the quotes of this row")
            yield _bad(number + 1, f"not a table: {what}", remedy)
            return
        if cells is None:
            return
        if names is None:
            names = cells
            continue
        if not cells:
            continue
        number += 1
        if len(cells) != len(names):
            yield _bad(number, f"{len(cells)} cells where the header names {len(names)} columns", "repair the row, or quote its cells")
        else:
            yield Record(number, {name: cell for name, cell in zip(names, cells, strict=True) if name})


def _table_lines(path: Path, encoding: str) -> Iterator[str]:
    rest = ""
    for piece in _text(path, encoding):
        *lines, rest = (rest + piece).split("\n")
        yield from (line + "\n" for line in lines)
    if rest:
        yield rest


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(number, _without_nulls(value))
    except (pa.ArrowException, OSError) as error:
        yield _bad(number + 1, f"cannot read the Parquet file: {error}", "write it again")


def _without_nulls(value: Any) -> Any:
    """Without the nulls with which a table fills up objects of different keys: they were in no row."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


def _codec(encoding: str, path: Path, *, lines: bool = False) -> None:
    try:
        plain = "\n".encode(encoding) == b"\n"
    except LookupError:
        remedy = "use a name such as utf-8, shift_jis, euc_kr or cp1252"
        raise UserError(f"no encoding is named '{encoding}'", where=str(path), remedy=remedy) from None
    if lines and not plain:
        raise UserError(f"JSON Lines cannot be read as {encoding}", where=str(path), remedy="convert the file to UTF-8")


def _bad(number: int, problem: str, remedy: str) -> Record:
    return Record(number, problem=Problem(number, WHOLE, problem, remedy))


def _told(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
