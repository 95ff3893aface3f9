"""`cairn export`: write a model as a folder for other programs. Knows no layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cairn.cli.show import Json, StoreDir, err, open_store, out, print_json


def command(
    ref: Annotated[str, typer.Argument(help="A trained model, a card, or any folder with a model.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="The layout: hf, which transformers loads.")] = "hf",
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Write a model with its tokenizer and chat template as an ordinary Hugging Face folder.

    A card is exported as the whole release; a trained model as the model alone. Every file's digest is checked.

    \b
    Examples:
        cairn export pebble/chat my-model --to hf
        cairn export pebble/card my-release --to hf
    """
    from cairn.ledger.store import show_bytes
    from cairn.pipeline.export import export

    done = export(ref, folder, to, open_store(store))
    found = done.json()
    if not done.template:
        err().print("note: the model has no chat template", markup=False)
    if json:
        print_json(found)
        return
    if done.left_out:
        err().print(f"note: left out: {', '.join(done.left_out)}", markup=False, soft_wrap=True)
    line = f"{len(done.files)} files, {show_bytes(found['bytes'])}, every digest checked: {done.folder}"
    out().print(line, markup=False, soft_wrap=True)
