"""`cairn plan`: what a run would do and cost. Knows no stage."""

from __future__ import annotations

from typing import Annotated

import typer

from cairn.cli.run import Set, Until
from cairn.cli.show import Json, StoreDir, open_store, out, print_json, show_count


def command(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe's name, or the path of one.")],
    store: StoreDir = None,
    set_: Set = None,
    until: Until = None,
    json: Json = False,
) -> None:
    r"""Show what a run would do: each stage, whether it is in the store, and what it costs.

    Unknown figures are a dash. Of a stage in the store, disk and time are what it took.

    \b
    Example:
        cairn plan pebble --set base.steps=100
    """
    from rich.table import Table

    from cairn.data.mix import show_passes
    from cairn.ledger.environment import memory_bytes
    from cairn.ledger.progress import show_seconds
    from cairn.ledger.store import show_bytes
    from cairn.pipeline.plan import make_plan, needed_bytes
    from cairn.pipeline.recipe import load_recipe

    place = open_store(store)
    loaded = load_recipe(recipe, set_ or [])
    steps = make_plan(loaded, place, until)
    if json:
        print_json({"recipe": loaded.name, "store": str(place.root), "stages": [step.json() for step in steps]})
        return
    table = Table(title=f"recipe {loaded.name}, seed {loaded.seed}", title_justify="left")
    for head in ("stage", "kind", "key", "status", "parameters", "tokens", "FLOPs", "memory", "disk", "time"):
        table.add_column(head, justify="right" if head in ("parameters", "tokens", "FLOPs", "memory", "disk", "time") else "left")
    for step in steps:
        estimate, spec = step.estimate, step.node.spec
        status = step.status + (" (begun)" if step.begun else "")
        table.add_row(
            spec.name,
            spec.stage.kind,
            step.node.key[:12],
            status,
            show_count(estimate.parameters),
            show_count(estimate.tokens),
            show_count(estimate.flops),
            "–" if estimate.memory_bytes is None else show_bytes(estimate.memory_bytes),
            "–" if estimate.disk_bytes is None else show_bytes(estimate.disk_bytes),
            "–" if estimate.seconds is None else show_seconds(estimate.seconds),
        )
    console = out()
    console.print(table)
    for step in steps:
        chosen = step.node.spec.stage.chosen(step.node.spec.config)
        if chosen:
            shown = (f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in chosen.items())
            console.print(f"{step.node.name} chose: {', '.join(shown)}", markup=False, soft_wrap=True)
    for step in steps:
        if step.estimate.passes:
            told = ", ".join(f"{name} {show_passes(value)}" for name, value in step.estimate.passes.items())
            console.print(f"{step.node.name} goes through its data about so often: {told}", markup=False, soft_wrap=True)
        if (step.estimate.memory_bytes or 0) > (have := memory_bytes()):
            what = f"{step.node.name} takes more memory than the {show_bytes(have)} of this machine"
            keys = "fewer batch_sequences, memory.activation_checkpointing, or adapter.merge: false"
            console.print(f"{what}: {keys}", markup=False, soft_wrap=True)
    todo = [step for step in steps if step.artifact is None]
    if not todo:
        console.print("Nothing to do: everything is in the store.")
        return
    known = [step.estimate.seconds for step in todo if step.estimate.seconds is not None]
    time = f"about {show_seconds(sum(known))}" if known else "time unknown"
    missing = f" (+ {len(todo) - len(known)} stages of unknown time)" if known and len(known) < len(todo) else ""
    disk = f"{show_bytes(needed_bytes(steps))} of disk, {show_bytes(place.free_bytes())} free"
    console.print(f"{len(todo)} of {len(steps)} stages to run: {time}{missing}; {disk}; store: {place.root}", markup=False, soft_wrap=True)
