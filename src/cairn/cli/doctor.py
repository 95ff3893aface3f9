"""`cairn doctor`: what this machine and installation are like, what is missing, and how fast it multiplies matrices. Changes none of it."""

from __future__ import annotations

from typing import Annotated

import typer

from cairn.cli.show import Json, StoreDir, open_store, out, print_json


def command(
    store: StoreDir = None,
    fast: Annotated[bool, typer.Option("--fast", help="Measure nothing: leave out the matrix products.")] = False,
    json: Json = False,
) -> None:
    r"""Report the environment, what is slow or missing, and the measured speed of matrix products.

    \b
    Example:
        cairn doctor
    """
    from rich.table import Table
    from rich.text import Text

    from cairn.pipeline.health import examine_machine

    report = examine_machine(open_store(store), measure=not fast)
    if json:
        print_json(report)
        return
    console = out()
    table = Table(title="environment", title_justify="left", show_header=False)
    for name, value in report["environment"].items():
        if isinstance(value, dict):
            value = [f"{k}={v}" for k, v in value.items()]
        table.add_row(name, Text(" ".join(value) if isinstance(value, list) else str(value)))
    for name, value in report["gemm_gflops"].items():
        table.add_row(f"matrix product {name}", f"{value:,.1f} GFLOP/s")
    console.print(table)
    styles = {"missing": "bold red", "slow": "yellow", "note": "dim"}
    for one in report["findings"]:
        line = Text.assemble((f"{one['level']}: ", styles[one["level"]]), one["what"], (f"  {one['remedy']}", "dim"))
        console.print(line, soft_wrap=True)
    if not report["findings"]:
        console.print("[green]Nothing is missing and nothing is slow.[/]")
