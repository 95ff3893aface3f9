"""Files to checked rows, one reader a file of this folder. Streams: never holds a whole file.

`read_rows` stops at the first bad row with an error that names file, row, field and remedy; `read_outcomes` tells what
became of every record, for whoever collects or drops the bad ones; `read_row` finds one by the number that errors name.
"""

from __future__ import annotations

import codecs
import importlib
import pkgutil
from collections.abc import Iterator
from encodings.aliases import aliases
from functools import cache
from pathlib import Path
from typing import Any

from cairn.data.readers import aozora as _aozora
from cairn.data.readers.base import Outcome, Reader, Record, all_readers, get_reader, reader_names
from cairn.data.readers.files import head, layout, list_files, read_documents, read_records, stem_of
from cairn.data.rows import WHOLE, Problem, Row, check_row
from cairn.errors import UserError, did_you_mean

__all__ = ["Outcome", "check_encoding", "check_reader", "detect_reader", "error_of", "read_outcomes", "read_row", "read_rows", "readers"]


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def readers() -> dict[str, str]:
    """The name of every reader, with what it reads."""
    _load()
    return {name: get_reader(name).help for name in reader_names()}


def check_reader(name: str) -> None:
    """Raises:
    UserError: `name` is neither a reader nor `auto`.
    """
    _load()
    if name != "auto":
        get_reader(name)


def check_encoding(name: str) -> None:
    """Raises:
    UserError: no text encoding has that name.
    """
    try:
        known = codecs.lookup(name)
    except (LookupError, ValueError):
        known = None
    # Some codecs turn bytes into bytes (base64) or text into text (rot13): files cannot be read with them.
    if known is None or not getattr(known, "_is_text_encoding", True):
        raise UserError(f"no text encoding is named '{name}'", remedy=did_you_mean(name, {*aliases, *aliases.values()}))


def read_rows(
    path: Path | str,
    reader: str = "auto",
    *,
    source: str | None = None,
    language: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    prompts: bool = False,
) -> Iterator[Row]:
    """The checked rows of a file, or of the files of a folder in the order of their names.

    Args:
        path: the file or folder. Files may be packed (`.gz`, `.bz2`).
        reader: a reader's name; `auto` looks at each file's first record.
        source: the `source` of rows that name none; the file's or folder's name without suffix unless given.
        language: the `language` of rows that name none.
        encoding: the text encoding, unless it is the reader's own (UTF-8 for most).
        separator: what stands between two documents of plain text; unless given, a file is one document.
        prompts: the rows are there to be answered, so that a dialogue may lack its answer.

    Raises:
        UserError: a bad row (file, row, field, remedy), an empty or missing file, or one that `auto` does not know.
    """
    found = False
    how: dict[str, Any] = {"source": source, "language": language, "encoding": encoding, "separator": separator, "prompts": prompts}
    for outcome in read_outcomes(path, reader, **how):
        if outcome.problem:
            raise error_of(outcome, path)
        if outcome.row is not None:
            found = True
            yield outcome.row
    if not found:
        raise UserError("the file holds no rows to use", where=str(path), remedy="check the file, or name its reader")


def read_outcomes(
    path: Path | str,
    reader: str = "auto",
    *,
    source: str | None = None,
    language: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    prompts: bool = False,
) -> Iterator[Outcome]:
    """Like `read_rows`, but bad and skipped records are told instead of ending it.

    Raises:
        UserError: a missing file, an unknown reader, or a file that `auto` does not know.
    """
    check_reader(reader)
    root = Path(path)
    source = source or stem_of(root.resolve().name)
    for name, file in list_files(root):
        inside = name if root.is_dir() else ""
        try:
            how = layout(file)
            if how == "empty":
                yield Outcome(0, problem=Problem(0, WHOLE, "the file is empty", "fill it, or leave it out"), file=inside)
                continue
            chosen = get_reader(reader) if reader != "auto" else _detect(file, how, encoding or "utf-8")
        except UserError as error:
            raise UserError(error.what, where=error.where or str(file), remedy=error.remedy) from None
        for outcome in chosen.rows(_records(file, how, chosen, encoding, separator)):
            yield _finish(outcome, name, source, language, inside, prompts)


def read_row(
    path: Path | str, number: int | None = None, reader: str = "auto", *, encoding: str | None = None, separator: str | None = None
) -> Row:
    """One checked row of a file.

    Args:
        path: the file.
        number: which record, counted as errors and `check` count: by lines of JSON Lines, else by items, table rows or documents. None:
            the first that is a row to use.
        reader, encoding, separator: as in `read_rows`.

    Raises:
        UserError: there is no such row, it is bad, or its file marks it as not to be used.
    """
    if Path(path).is_dir():
        first = list_files(Path(path))[0][1]
        raise UserError("the files of a folder count their rows each from 1", where=str(path), remedy=f"name one file, such as {first}")
    last = 0
    for outcome in read_outcomes(path, reader, encoding=encoding, separator=separator):
        last = max(last, outcome.number)
        if number is None and outcome.row is None and not outcome.problem:
            continue
        if outcome.number and number not in (None, outcome.number):
            continue
        if outcome.problem:
            raise error_of(outcome, path)
        if outcome.row is None:
            raise UserError(f"row {number} is not used: {outcome.skipped}", where=f"{path}, row {number}", remedy="name another --row")
        return outcome.row
    if number is None:
        raise UserError("the file holds no rows to use", where=str(path), remedy="check the file, or name its reader")
    if number <= last:
        raise UserError(f"no row begins at {number}", where=str(path), remedy="a blank line, or a part of another row: try the one before")
    raise UserError(f"there is no row {number}", where=str(path), remedy=f"the file's last row is {last}: give --row from 1 to {last}")


def detect_reader(path: Path | str, encoding: str = "utf-8") -> str:
    """The name of the reader that `auto` takes for a file.

    Raises:
        UserError: none fits, or several do.
    """
    _load()
    return _detect(Path(path), layout(Path(path)), encoding).name


def error_of(outcome: Outcome, path: Path | str) -> UserError:
    """The error that a problem is for whoever stops at it."""
    assert outcome.problem
    _, field, problem, remedy = outcome.problem
    file = str(Path(path) / outcome.file) if outcome.file else str(path)
    where = [file, *([f"row {outcome.number}"] if outcome.number else []), *([field] if field != WHOLE else [])]
    return UserError(problem, where=", ".join(where), remedy=remedy)


def _records(file: Path, how: str, reader: Reader, encoding: str | None, separator: str | None) -> Iterator[Record]:
    codec = encoding or reader.encoding
    if reader.kind == "documents":
        return read_documents(file, codec, separator)
    if how == "text":
        what = f"the file holds plain text, which the reader '{reader.name}' does not read"
        raise UserError(what, where=str(file), remedy="use --reader text, or check the file")
    return read_records(file, how, codec)


def _detect(file: Path, how: str, encoding: str) -> Reader:
    if how == "text":
        start = head(file)
        # The header says in Shift_JIS what its marks mean; no other plain text is recognised by its words.
        return get_reader("aozora" if _aozora.MARK.encode("cp932") in start else "text")
    if how == "empty":
        raise UserError("the file is empty", where=str(file), remedy="fill it, or leave it out")
    first = next((r for r in read_records(file, how, encoding) if r.problem is None), None)
    if first is None or not isinstance(first.value, dict):
        # Nothing to go by: any reader of records then tells what is wrong with each.
        return get_reader("messages")
    fitting = [r for r in all_readers() if r.detect(first.value)]
    if len(fitting) == 1:
        return fitting[0]
    keys = ", ".join(f"'{k}'" for k in list(first.value)[:8])
    if not fitting:
        what = f"cannot tell how to read a file whose rows have the keys {keys}"
    else:
        what = f"the keys {keys} fit several readers: {', '.join(r.name for r in fitting)}"
    raise UserError(what, where=f"{file}, row {first.number}", remedy="name the reader (--reader): " + ", ".join(reader_names()))


def _finish(outcome: Outcome, name: str, source: str, language: str | None, inside: str, prompts: bool) -> Outcome:
    """A reader's outcome with the row completed and checked."""
    if outcome.row is None:
        return Outcome(outcome.number, problem=outcome.problem, skipped=outcome.skipped, file=inside)
    row = outcome.row
    row.setdefault("source", source)
    if language:
        row.setdefault("language", language)
    row.setdefault("id", f"{name}:{outcome.number}")
    problems = check_row(row, outcome.number, prompt=prompts)
    if problems:
        return Outcome(outcome.number, problem=problems[0], more=tuple(problems[1:]), file=inside)
    return Outcome(outcome.number, row=row, file=inside)
