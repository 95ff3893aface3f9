"""`cairn diff`: where two artifacts part. Reads records and files alone."""

from __future__ import annotations

from typing import Annotated

import typer

from cairn.cli.show import Json, StoreDir, open_store, out, print_json


def command(
    left: Annotated[str, typer.Argument(help="recipe/stage, an artifact's folder, or the start of a key.")],
    right: Annotated[str, typer.Argument(help="The other one.")],
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Show the first difference of two artifacts in configuration, inputs, environment and outputs.

    \b
    Example:
        cairn diff pebble/base 3fa85f64
    """
    from rich.table import Table
    from rich.text import Text

    from cairn.ledger.compare import compare
    from cairn.pipeline.resolve import resolve_artifact

    place = open_store(store)
    one, two = resolve_artifact(left, place), resolve_artifact(right, place)
    found = compare(one, two)
    equal = one.record.digest == two.record.digest
    if json:
        print_json({"equal": equal, "left": one.key, "right": two.key, "differences": found})
        return
    table = Table(title="first difference of each aspect", title_justify="left")
    for head in ("aspect", "where", f"{left}", f"{right}"):
        table.add_column(head, overflow="fold")
    for aspect, difference in found.items():
        if difference is None:
            table.add_row(aspect, Text("equal", style="green"), "", "")
            continue
        where = Text(difference["path"] or "–", style="red")
        if "why" in difference:
            where.append(f"\n{difference['why']}", style="dim")
        table.add_row(aspect, where, Text(_short(difference["left"])), Text(_short(difference["right"])))
    out().print(table)
    out().print("The outputs are equal, byte for byte." if equal else "The outputs differ.")


def _short(value: object) -> str:
    text = str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    return text if len(text) <= 200 else text[:197] + "..."
