"""`cairn eval`: ask models the questions of a suite and print scores with intervals. Knows no suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cairn.cli.show import Json, StoreDir, err, open_store, out, print_json


def command(
    refs: Annotated[list[str], typer.Argument(help="Models: recipe/stage, folders, keys, or names on the hub.", show_default=False)],
    suite: Annotated[str, typer.Option("--suite", help="A built-in suite, the path of a YAML file, or `likelihood`.", show_default=False)],
    store: StoreDir = None,
    data: Annotated[str | None, typer.Option("--data", help="A file of rows, or an artifact or folder with the suite's files.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many rows of each file.")] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Keep the samples in this folder.", show_default=False)] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table with the average of the shares.")] = False,
    json: Json = False,
) -> None:
    r"""Score models on the same questions, side by side, with 95 % intervals.

    Without --data the questions come from what the models were made from.

    \b
    Examples:
        cairn eval pebble/chat --suite pebble
        cairn eval pebble/base pebble/chat --suite likelihood --data held-out.jsonl
    """
    import tempfile

    from cairn.ledger.progress import make_progress
    from cairn.pipeline.examine import examine
    from cairn.pipeline.results import difference_text, models_table

    with tempfile.TemporaryDirectory(prefix="cairn-eval-") as aside:
        folder = out_ if out_ is not None else Path(aside)
        found = examine(refs, suite, open_store(store), folder, data=data, limit=limit, progress=make_progress)
    if json:
        print_json({"models": found["models"], "rows": found["rows"]})
        return
    if markdown:
        from cairn.report.tables import compared_table

        print(compared_table(found["models"], found["rows"]), end="")
        return
    differences = {name: [difference_text(d) for d in values] for name, values in found["differences"].items()}
    out().print(models_table(found["models"], found["rows"], differences))
    if out_ is not None:
        err().print(f"samples: {out_}", markup=False)
