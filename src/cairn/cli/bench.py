"""`cairn bench`: run one of the repository's benchmarks and print what it measured. Knows none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.cli.show import Json, err, out, print_json


def command(
    name: Annotated[str | None, typer.Argument(help="A benchmark; without one, all are listed.", show_default=False)] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="A new or empty folder to work in, which is kept.", show_default=False)
    ] = None,
    times: Annotated[int | None, typer.Option("--times", help="How often, where that is asked.", show_default=False)] = None,
    no_replay: Annotated[bool, typer.Option("--no-replay", help="Leave the replay of the stages out.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any option of the benchmark: name=value. May be given often.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    r"""Measure this program: every number beside what it must reach.

    Ends with status 1 if anything that must be reached was missed.

    \b
    Examples:
        cairn bench
        cairn bench demo --json
        cairn bench faults --times 5
    """
    from cairn.ledger.environment import environment
    from cairn.pipeline.bench import benchmarks, load_benchmark, make_options, missed

    if name is None:
        _list(benchmarks(), json)
        return
    module = load_benchmark(name)
    given = {"store": store, "times": times, "replay": False if no_replay else None}
    options = make_options(name, module, {key: value for key, value in given.items() if value is not None}, set_ or [])
    rows = module.run(options)
    if json:
        print_json({"environment": environment(), "rows": rows})
    else:
        _table(name, rows)
    short = missed(rows)
    if short:
        err().print(f"{len(short)} of {sum(bool(r['must']) for r in rows)} bounds missed", markup=False)
        raise typer.Exit(1)


def _list(known: dict[str, str], json: bool) -> None:
    if json:
        print_json({"benchmarks": known})
        return
    width = max(map(len, known), default=0)
    for name, line in known.items():
        out().print(f"{name:<{width}}  {line}", markup=False, soft_wrap=True)


def _table(name: str, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"benchmark {name}", title_justify="left")
    for head in ("measure", "ours", "peer", "ratio", "must", "ok"):
        table.add_column(head, justify="left" if head in ("measure", "must", "ok") else "right")
    for one in rows:
        sign = {True: "ok" if one["must"] else "", False: "MISSED", None: "–"}[one["ok"]]
        style = "red" if one["ok"] is False else ""
        cells = [one["measure"], *(_figure(one[key]) for key in ("ours", "peer", "ratio")), one["must"], sign]
        table.add_row(*(Text(cell) for cell in cells), style=style)
    out().print(table)


def _figure(value: float | None) -> str:
    from cairn.ledger.progress import show_number

    return "–" if value is None else show_number(value)
