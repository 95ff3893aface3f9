"""`cairn check`: what is wrong with a data file, row by row. Knows no format of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cairn.cli.show import Json, out, print_json

SHOWN = 50


def command(
    file: Annotated[Path, typer.Argument(help="A data file, or a folder of them.")],
    reader: Annotated[str, typer.Option("--reader", help="How to read it; `auto` looks at the first row.")] = "auto",
    encoding: Annotated[str | None, typer.Option("--encoding", help="Text encoding, such as shift_jis.", show_default=False)] = None,
    json: Json = False,
) -> None:
    r"""Check every row of a data file and say what is wrong, where, and what to do.

    Ends with status 2 if anything is wrong.

    \b
    Examples:
        cairn check dialogues.jsonl
        cairn check train.json --reader alpaca --json
    """
    from cairn.data.check import check_file

    report = check_file(file, reader, encoding=encoding)
    if json:
        print_json(report)
    elif report["ok"]:
        out().print(f"[green]ok[/]: {report['rows']:,} rows", soft_wrap=True)
    else:
        _show(report)
    if not report["ok"]:
        raise typer.Exit(2)


def _show(report: dict) -> None:
    from rich.table import Table

    problems = report["problems"]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("row", "field", "problem", "what to do"):
        table.add_column(name, justify="right" if name == "row" else "left", overflow="fold")
    for one in problems[:SHOWN]:
        table.add_row(str(one["row"] or "–"), *(_printable(one[key]) for key in ("field", "problem", "remedy")))
    out().print(table, markup=False)
    bad = len({(one["row"], one["problem"].partition(": ")[0]) if one["row"] == 0 else one["row"] for one in problems})
    if len(problems) > SHOWN:
        out().print(f"and {len(problems) - SHOWN:,} more (all with --json)")
    out().print(f"[red]{len(problems):,} problems[/] in {bad:,} of {report['rows']:,} rows", soft_wrap=True)


def _printable(text: str) -> str:
    """Without control signs and lone surrogates, which a field's name may hold and a terminal must not see."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text))
