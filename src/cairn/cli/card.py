"""`cairn card`: print the card of a model, or write its release, out of records alone. Loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cairn.cli.show import StoreDir, err, open_store


def command(
    ref: Annotated[str, typer.Argument(help="A card, a trained model, or a folder with a README.md.")],
    store: StoreDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the whole release into this new folder.", show_default=False)] = None,
) -> None:
    r"""Print a model's card; with --out write its release: weights, card, curve, samples and lineage.

    \b
    Examples:
        cairn card pebble/card
        cairn card pebble/chat --out my-model
    """
    from cairn.pipeline.cards import card_of, release_to

    place = open_store(store)
    if out is None:
        print(card_of(ref, place), end="")
        return
    release_to(ref, place, out)
    err().print(f"written: {out / 'README.md'}", markup=False)
