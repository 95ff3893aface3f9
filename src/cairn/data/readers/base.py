"""The register of readers, and what a reader is. Knows no file and no format.

A reader turns the records of a file (JSON objects, table rows, or documents of plain text) into rows. To add one, add a
file to this folder that decorates a function with `record_reader`, `stream_reader` or `document_reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cairn.data.rows import WHOLE, Problem, Row, RowError
from cairn.errors import UserError, did_you_mean

MAX_META = 200
"""The longest text in a record's unknown key that is kept under `meta`, in characters."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file as it was found, or what is wrong with it."""

    number: int
    """From 1: line, list item, table row or document."""
    value: Any = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record: a row, a problem, or nothing, with the reason."""

    number: int
    row: Row | None = None
    problem: Problem | None = None
    """The first problem of the record."""
    more: tuple[Problem, ...] = ()
    """Its further problems."""
    skipped: str = ""
    file: str = ""
    """The file, where a folder is read: its path inside the folder."""


class Skip(Exception):
    """Raised by a reader for a record that the file marks as not to be used, with the reason."""


Stream = Callable[[Iterator[Record]], Iterator[Outcome]]
Convert = Callable[[dict[str, Any]], Row]
Detect = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Reader:
    """How the records of one kind of file become rows."""

    name: str
    help: str
    kind: Literal["records", "documents"]
    rows: Stream
    detect: Detect
    """Whether a record looks like this reader's; never true for readers that are only used by name."""
    encoding: str


_REGISTER: dict[str, Reader] = {}


def never(_: dict[str, Any]) -> bool:
    """The `detect` of a reader that is only used by name."""
    return False


def stream_reader(
    name: str,
    *,
    help: str,
    kind: Literal["records", "documents"] = "records",
    detect: Detect = never,
    encoding: str = "utf-8",
) -> Callable[[Stream], Stream]:
    """Register a function from a file's records to outcomes: for formats whose rows span several records."""

    def register(function: Stream) -> Stream:
        if name in _REGISTER:
            raise ValueError(f"two readers are named {name}")
        _REGISTER[name] = Reader(name, help, kind, function, detect, encoding)
        return function

    return register


def record_reader(name: str, *, help: str, detect: Detect = never) -> Callable[[Convert], Convert]:
    """Register a function from one record to one row. It raises `RowError` for a bad record and `Skip` for one not to be used."""

    def register(function: Convert) -> Convert:
        def convert(value: Any) -> Row:
            if not isinstance(value, dict):
                raise RowError(WHOLE, f"a row must be an object, not {type(value).__name__}", "write one JSON object a row")
            return function(value)

        stream_reader(name, help=help, detect=detect)(lambda records: one_by_one(records, convert))
        return function

    return register


def document_reader(name: str, *, help: str, encoding: str = "utf-8") -> Callable[[Callable[[str], Row]], Callable[[str], Row]]:
    """Register a function from one document of plain text to one row."""

    def register(function: Callable[[str], Row]) -> Callable[[str], Row]:
        stream_reader(name, help=help, kind="documents", encoding=encoding)(lambda records: one_by_one(records, function))
        return function

    return register


def one_by_one(records: Iterator[Record], convert: Callable[[Any], Row]) -> Iterator[Outcome]:
    """Outcomes where each record stands for itself."""
    for record in records:
        if record.problem:
            yield Outcome(record.number, problem=record.problem)
            continue
        yield attempt(record.number, convert, record.value)


def attempt(number: int, convert: Callable[[Any], Row], value: Any) -> Outcome:
    """The outcome of a conversion."""
    try:
        return Outcome(number, row=convert(value))
    except Skip as reason:
        return Outcome(number, skipped=str(reason))
    except UserError as error:
        return Outcome(number, problem=Problem(number, error.where or WHOLE, error.what, error.remedy))


def get_reader(name: str) -> Reader:
    """The reader of that name.

    Raises:
        UserError: there is none.
    """
    if name not in _REGISTER:
        raise UserError(f"no reader is named '{name}'", remedy=did_you_mean(name, [*_REGISTER, "auto"]))
    return _REGISTER[name]


def reader_names() -> list[str]:
    """The names of all readers, sorted."""
    return sorted(_REGISTER)


def all_readers() -> list[Reader]:
    """All readers, by name."""
    return [_REGISTER[name] for name in reader_names()]


def text_of(record: dict[str, Any], key: str, *, optional: bool = False) -> str:
    """The text under `key`.

    Raises:
        RowError: it is missing, no text, or empty where it must not be.
    """
    value = record.get(key)
    if value is None and optional:
        return ""
    if value is None:
        raise RowError(key, f"the key '{key}' is missing", "add it, or name another reader with --reader")
    if not isinstance(value, str):
        raise RowError(key, f"'{key}' must be text, not {type(value).__name__}", "write it as a string")
    if not value.strip() and not optional:
        raise RowError(key, f"'{key}' is empty", "fill it in, or remove the row")
    return value


def leftovers(record: dict[str, Any], used: Iterable[str]) -> Row:
    """What a row takes over of a record beside its dialogue: `source`, `language`, `id`, and short values of other keys as `meta`.

    Long texts and nested values of unknown keys stay behind: such files repeat whole conversations there.
    """
    known = set(used)
    row: Row = {k: record[k] for k in ("source", "language", "id") if k not in known and isinstance(record.get(k), str) and record[k]}
    rest = {k: v for k, v in record.items() if k not in known and k not in row and _is_short(v)}
    return {**row, "meta": rest} if rest else row


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and 0 < len(value) <= MAX_META)
