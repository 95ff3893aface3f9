"""`cairn verify`: is an artifact what its record says, and does its stage make it again? Knows no stage."""

from __future__ import annotations

from typing import Annotated

import typer

from cairn.cli.show import Json, StoreDir, err, open_store, out, print_json


def command(
    ref: Annotated[str, typer.Argument(help="recipe/stage, an artifact's folder, or the start of a key.")],
    store: StoreDir = None,
    replay: Annotated[bool, typer.Option("--replay", help="Run the stage again and compare every output's bytes.")] = False,
    interval: Annotated[str | None, typer.Option("--interval", help="A:B: replay only from checkpoint A to B.", show_default=False)] = None,
    json: Json = False,
) -> None:
    r"""Check an artifact: hash every file, or with --replay run its stage again and compare.

    Ends with status 2 if anything differs.

    \b
    Examples:
        cairn verify pebble/chat
        cairn verify pebble/base --replay --interval 100:200
    """
    from cairn.errors import UserError
    from cairn.ledger.progress import make_progress, show_seconds
    from cairn.ledger.record import RECORD
    from cairn.ledger.store import Artifact
    from cairn.pipeline.resolve import locate
    from cairn.pipeline.verify import parse_interval, verify_folder
    from cairn.pipeline.verify import replay as run_again

    place = open_store(store)
    folder = locate(ref, place, hub=False)
    if not (folder / RECORD).exists() and folder.parent != place.artifacts:
        what = "this folder is no artifact: it has no record.json"
        raise UserError(what, where=str(folder), remedy="name an artifact, such as recipe/stage")
    span = parse_interval(interval) if interval is not None else None
    verdict = verify_folder(folder)
    did = f"{verdict.files} files have the bytes of the record"
    if verdict.ok and (replay or span):
        artifact = Artifact(folder)
        verdict = run_again(artifact, place, interval=span, progress=make_progress(f"replay of {artifact.record.name}"))
        took = artifact.record.times.get("seconds")
        ago = f" (it took {show_seconds(took)} at first)" if isinstance(took, int | float) else ""
        did = f"{verdict.files} files came out again, byte for byte{ago}"
        if span:
            did = f"checkpoint {span[1]} came out of checkpoint {span[0]} again, byte for byte"
    for note in verdict.notes:
        err().print(f"note: {note}", markup=False, soft_wrap=True)
    if json:
        print_json(verdict.json())
    elif verdict.ok:
        out().print(f"[green]ok[/]: {did}  {folder}", soft_wrap=True)
    else:
        out().print(f"[red]differs[/]: {len(verdict.differs)} in {folder}", soft_wrap=True)
        for one in verdict.differs[:20]:
            out().print(f"  {one['path']}: {one['why']}", markup=False, soft_wrap=True)
        if len(verdict.differs) > 20:
            out().print(f"  and {len(verdict.differs) - 20} more (all with --json)")
    if not verdict.ok:
        raise typer.Exit(2)
