"""`cairn merge`: make one model of an adapter and its base. Knows no adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cairn.cli.show import Json, StoreDir, open_store, out, print_json


def command(
    ref: Annotated[str, typer.Argument(help="A train stage with an adapter, or a folder with adapter_config.json.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    base: Annotated[str | None, typer.Option("--base", help="The model beneath, for an adapter from elsewhere.")] = None,
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Merge an adapter into its base and write an ordinary Hugging Face folder.

    The logits of what was written are compared with those of the adapter on its base; if they differ, nothing is kept.

    \b
    Examples:
        cairn merge tuned/chat my-model
        cairn merge some-adapter my-model --base some-base
    """
    from cairn.pipeline.merge import merge

    done = merge(ref, folder, base, open_store(store))
    if json:
        print_json(done.json())
        return
    out().print(f"merged, logits equal but for {done.difference:.0e} of the largest: {done.folder}", markup=False, soft_wrap=True)
