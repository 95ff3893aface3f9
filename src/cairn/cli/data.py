"""`cairn data`: the mix table of data files, and their conversion. Knows no format of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.cli.show import Json, StoreDir, err, open_store, out, print_json
from cairn.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

Reader = Annotated[str, typer.Option("--reader", help="How to read the files; `auto` looks at each file's first row.")]
Encoding = Annotated[str | None, typer.Option("--encoding", help="Text encoding, such as shift_jis.", show_default=False)]


def stats(
    files: Annotated[list[Path], typer.Argument(help="Data files, or folders of them.")],
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="A stage or folder whose tokenizer counts; else words.", show_default=False)
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Chat format: #Tokens then counts rendered rows.", show_default=False)
    ] = None,
    reader: Reader = "auto",
    encoding: Encoding = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Print the mix table: size, and number and length of questions and answers, of each subset.

    A subset is what rows name as their source, or else a file's name. Files are streamed.

    \b
    Examples:
        cairn data stats alpaca.json dolly.jsonl
        cairn data stats train.jsonl --tokenizer pebble/tokenizer --format k2 --json
    """
    from cairn.data.readers import read_rows
    from cairn.data.stats import MixTable

    if format and not tokenizer:
        raise UserError("a format renders tokens, and no tokenizer is given", where="--format", remedy="add --tokenizer")
    words = renderer = None
    if tokenizer:
        from cairn.pipeline.resolve import tokenizer_folder
        from cairn.tokenizer.load import Tokenizer

        words = Tokenizer.load(tokenizer_folder(tokenizer, open_store(store)))
        if format:
            from cairn.chat.format import load_format
            from cairn.chat.render import Renderer

            renderer = Renderer(load_format(format), words)
    table = MixTable(words, renderer)
    for file in files:
        for row in read_rows(file, reader, encoding=encoding):
            table.add(row)
    if json:
        print_json(table.as_dict())
    elif markdown:
        from cairn.report.tables import mix_table

        print(mix_table(table.as_dict()), end="")
    else:
        _show(table.as_dict())


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A data file, or a folder of them.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .jsonl, .jsonl.gz or .parquet.")],
    reader: Reader = "auto",
    encoding: Encoding = None,
    drop: Annotated[bool, typer.Option("--drop-bad", help="Leave bad rows out and say how many.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    json: Json = False,
) -> None:
    r"""Write rows of any known kind as Cairn's own: one checked row of messages or text each.

    \b
    Examples:
        cairn data convert alpaca.json alpaca.jsonl
        cairn data convert oasst.jsonl.gz oasst.parquet --reader oasst_all
    """
    from cairn.data.write import write_rows

    if target.exists() and not force:
        raise UserError("the file is there already", where=str(target), remedy="choose another name, or add --force")
    left_out: dict[str, int] = {"bad": 0, "skipped": 0}
    count = write_rows(_rows(source, reader, encoding, drop, left_out), target)
    if json:
        print_json({"rows": count, **left_out, "file": str(target)})
        return
    for what, number in zip(("that are bad", "that the file marks as not to be used"), left_out.values(), strict=True):
        if number:
            err().print(f"note: left out {number:,} records {what}", soft_wrap=True)
    out().print(f"{count:,} rows in {target}", markup=False, soft_wrap=True)


def _rows(source: Path, reader: str, encoding: str | None, drop: bool, left_out: dict[str, int]) -> Iterator[dict[str, Any]]:
    from cairn.data.readers import error_of, read_outcomes

    used = 0
    for outcome in read_outcomes(source, reader, encoding=encoding):
        if outcome.problem and (not drop or outcome.number == 0):
            raise error_of(outcome, source)
        if outcome.row is None:
            left_out["bad" if outcome.problem else "skipped"] += 1
        else:
            used += 1
            yield outcome.row
    if not used:
        raise UserError("the file holds no rows to use", where=str(source), remedy="check the file, or name its reader")


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    from cairn.data.stats import cells, headers

    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=True)
    for name, total in zip(headers(found["unit"]), cells(found["total"]), strict=True):
        table.add_column(name, footer=total, justify="left" if name == "Subset" else "right")
    for row in found["subsets"]:
        table.add_row(*cells(row))
    out().print(table, markup=False)


COMMANDS = {"stats": stats, "convert": convert}
