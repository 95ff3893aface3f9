"""`cairn merge`: make one model of an adapter and its base, or of several models. Knows no adapter and no method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cairn.cli.show import Json, StoreDir, open_store, out, print_json


def command(
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="A train stage with an adapter, or models.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    base: Annotated[str | None, typer.Option("--base", help="The model beneath: of an adapter from elsewhere, or of the models.")] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="linear, slerp, task_arithmetic, ties, dare, dare_ties or liti: merge whole models.")
    ] = None,
    weight: Annotated[list[float] | None, typer.Option("--weight", help="How much a model counts, once for each. [default: 1]")] = None,
    density: Annotated[float | None, typer.Option("--density", help="ties, dare: share of the changes that stays. [default: 0.2]")] = None,
    scale: Annotated[float | None, typer.Option("--scale", help="What the change is multiplied with. [default: 1; liti: 0.5]")] = None,
    format: Annotated[str | None, typer.Option("--format", help="The result's chat format, where the models' differ.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the places that dare drops.")] = 0,
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Merge an adapter into its base, or models into one, and write an ordinary Hugging Face folder.

    An adapter's logits on its base are compared with those of what was written; if they differ, nothing is kept. Models must have one
    architecture and one tokenizer. A checkpoint of a training is named by its folder, ARTIFACT/checkpoints/step-000100.

    \b
    Examples:
        cairn merge tuned/chat my-model
        cairn merge some-adapter my-model --base some-base
        cairn merge tuned/chat other/chat my-model --method ties --base tuned/base --density 0.3
        cairn merge tuned/chat my-model --method liti --base tuned/base --scale 0.7
    """
    if method is None:
        from cairn.errors import UserError
        from cairn.pipeline.merge import merge

        told = {"--weight": weight, "--density": density, "--scale": scale, "--format": format}
        strange = [name for name, value in told.items() if value]
        if len(refs) > 1 or strange:
            given = f"{len(refs)} models are" if len(refs) > 1 else f"{strange[0]} is"
            remedy = "say how models are merged, such as --method linear; without a method, one adapter is merged"
            raise UserError(f"{given} given, and no method", where="cairn merge", remedy=remedy)
        adapter = merge(refs[0], folder, base, open_store(store))
        shown = adapter.json()
        said = f"merged, logits equal but for {adapter.difference:.0e} of the largest: {adapter.folder}"
    else:
        from cairn.pipeline.merge import merge_whole

        options = {"method": method, "density": density, "scale": scale}
        done = merge_whole(refs, folder, base, options, weight or None, format, seed, open_store(store))
        shown = done.json()
        said = f"merged {done.parameters:,} parameters of {len(refs)} models: {done.folder}"
    if json:
        print_json(shown)
        return
    out().print(said, markup=False, soft_wrap=True)
