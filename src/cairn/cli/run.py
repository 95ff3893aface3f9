"""`cairn run`: run a recipe and show how it goes. Knows no stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cairn.cli.show import Json, StoreDir, err, open_store, out, print_json

if TYPE_CHECKING:
    from cairn.pipeline.plan import Step
    from cairn.pipeline.run import RunResult, StageResult

Set = Annotated[list[str] | None, typer.Option("--set", help="Override a value: a.b=c. May be given often.", show_default=False)]
Until = Annotated[str | None, typer.Option("--until", help="Stop after this stage; leave out what it does not need.", show_default=False)]


def command(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe's name (see `cairn list`), or the path of one.")],
    store: StoreDir = None,
    set_: Set = None,
    until: Until = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin unfinished stages anew instead of resuming them.")] = False,
    ranks: Annotated[int, typer.Option("--ranks", help="Divide each training over this many processes of this machine.")] = 1,
    json: Json = False,
) -> None:
    r"""Run a recipe: every stage whose artifact is not in the store yet.

    A run that was stopped, even by a power cut, goes on where it was and ends in the same bytes.

    \b
    Examples:
        cairn run pebble
        cairn run my-recipe.yaml --set base.steps=100 --until base
        cairn run my-recipe.yaml --ranks 2
        torchrun --nproc-per-node 8 -m cairn run my-recipe.yaml
    """
    import time

    from cairn.ledger.progress import make_progress, show_seconds
    from cairn.pipeline.recipe import load_recipe
    from cairn.pipeline.run import run_recipe

    began = time.monotonic()
    place = open_store(store)
    loaded = load_recipe(recipe, set_ or [])
    console = err()

    def on_stage(step: Step, result: StageResult | None) -> None:
        name = step.node.name
        if result is None:
            begun = ", begun before" if step.begun else ""
            console.print(f"[bold]{name}[/] ({step.node.spec.stage.kind}{begun}) {step.node.key[:12]}")
        elif result.status == "ran":
            console.print(f"[bold]{name}[/] [green]done[/] in {show_seconds(result.seconds)}, digest {result.artifact.record.digest[:12]}")

    result = run_recipe(loaded, place, until=until, fresh=fresh, progress=make_progress, on_stage=on_stage, ranks=ranks)
    if not result.stages:
        return  # a rank that only takes part: rank 0 shows what became of the run
    if json:
        print_json(result.json())
        return
    _conclude(result, time.monotonic() - began, str(place.root))


def _conclude(result: RunResult, seconds: float, root: str) -> None:
    from rich.table import Table

    from cairn.ledger.progress import show_seconds

    console = out()
    table = Table(title=f"recipe {result.recipe}", title_justify="left")
    for head in ("stage", "status", "time", "key", "digest"):
        table.add_column(head, justify="right" if head == "time" else "left")
    for stage in result.stages:
        record = stage.artifact.record
        time = show_seconds(stage.seconds) if stage.status == "ran" else "–"
        table.add_row(stage.name, stage.status, time, record.key[:12], record.digest[:12])
    console.print(table)
    for stage in result.last:
        summary = stage.stage.summarize(stage.artifact)
        if summary is not None:
            console.print(summary)
    if result.ran:
        line = f"{result.ran} of {len(result.stages)} stages ran in {show_seconds(seconds)}; store: {root}"
    else:
        line = f"Nothing to do: everything is in the store ({root})."
    console.print(line, soft_wrap=True, markup=False)
