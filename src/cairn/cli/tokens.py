"""`cairn tokens`: a row's ids, pieces and loss mask, as training sees them. Parses, calls, prints; knows no template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.cli.show import Json, StoreDir, err, open_store, out, print_json
from cairn.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.text import Text

    from cairn.chat.render import Renderer
    from cairn.tokenizer.load import Tokenizer

_SIGNS = {" ": "␣", "\n": "↵", "\t": "→", "\r": "␍"}
_WIDTH = 120


def command(
    ref: Annotated[
        str,
        typer.Argument(help="A chat format, or whose tokenizer to use: recipe/stage, a folder, or the start of a key."),
    ],
    file: Annotated[Path, typer.Argument(help="The data file.")],
    row: Annotated[
        int | None,
        typer.Option("--row", min=1, help="Which row, counted as `cairn check` counts; the first one unless given.", show_default=False),
    ] = None,
    reader: Annotated[str, typer.Option("--reader", help="How to read the file; see `cairn check`.")] = "auto",
    encoding: Annotated[str | None, typer.Option("--encoding", help="The text's encoding, if not UTF-8.")] = None,
    separator: Annotated[str | None, typer.Option("--separator", help="What stands between two documents of plain text.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="Another chat format than the checkpoint's own.")] = None,
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Show a row's tokens and its loss mask: what a model is trained to say.

    A format's name uses a tokenizer of single bytes, made for the occasion. Rows are counted from 1 as in the messages of
    `cairn check`: by the lines of JSON Lines (blank and bad ones count too), else by list items, table rows or documents.

    \b
    Example:
        cairn tokens k2 rows.jsonl --row 3
        cairn tokens pebble/chat rows.jsonl
    """
    from cairn.data.readers import read_row
    from cairn.data.rows import messages_of

    renderer, tokenizer, made = _renderer(ref, format, store)
    found = read_row(file, row, reader, encoding=encoding, separator=separator)
    if "text" in found:
        from cairn.data.encode import encode_row

        encoded = encode_row(found, None, tokenizer, max_length=1 << 40, objective="language_model")
        ids, mask = [int(i) for i in encoded[0].ids], [int(m) for m in encoded[0].mask]
        text, turns = tokenizer.decode(ids), [("text", 0, len(ids))]
    else:
        rendered = renderer().render(messages_of(found), tools=found.get("tools"), attributes=found.get("attributes"))
        ids, mask, text, turns = rendered.ids, rendered.mask, rendered.text, list(rendered.turns)
    if json:
        print_json({"text": text, "ids": ids, "pieces": tokenizer.pieces(ids), "mask": mask})
        return
    if made:
        err().print(f"note: '{ref}' is a format without a tokenizer, so every byte is one token; name a checkpoint to see its tokens")
    special, labels = tokenizer.special_ids, tokenizer.labels(ids)
    console = out()
    for role, start, end in turns:
        console.print(f"\n[bold]{role}[/bold]  [dim]{end - start} tokens, {sum(mask[start:end])} supervised[/dim]")
        for line in _blocks(ids[start:end], labels[start:end], mask[start:end], special, min(console.width, _WIDTH)):
            console.print(line, no_wrap=True, crop=False, overflow="ignore")
    share = 100 * sum(mask) / max(len(mask), 1)
    console.print(f"\n{len(ids)} tokens, {sum(mask)} supervised ({share:.0f} %), {sum(i in special for i in ids)} special")
    console.print("[green]■ supervised[/green]   [dim]· context only[/dim]   [magenta]special token[/magenta]   ␣ space   ↵ new line")


def _renderer(ref: str, format: str | None, store: Path | None) -> tuple[Any, Tokenizer, bool]:
    """(what makes the renderer, the tokenizer, whether it was made for the occasion)."""
    from cairn.chat.format import format_names, load_format
    from cairn.chat.render import Renderer
    from cairn.tokenizer.load import Tokenizer

    if ref in format_names():
        if format is not None:
            what = f"'{ref}' is a chat format itself: there is no checkpoint whose format to replace"
            raise UserError(what, where="--format", remedy=f"leave --format away, or name a checkpoint in place of '{ref}'")
        from cairn.tokenizer.train import byte_tokenizer

        chosen = load_format(ref)
        tokenizer = byte_tokenizer(chosen)
        return (lambda: Renderer(chosen, tokenizer)), tokenizer, True
    from cairn.pipeline.resolve import tokenizer_folder

    try:
        folder = tokenizer_folder(ref, open_store(store))
    except UserError as error:
        if "/" in ref or Path(ref).exists():
            raise
        remedy = f"a chat format: {did_you_mean(ref, format_names())}; a checkpoint: {error.remedy}"
        raise UserError(f"'{ref}' is neither a chat format nor a checkpoint", remedy=remedy) from None
    tokenizer = Tokenizer.load(folder)

    def make() -> Renderer:
        return Renderer(load_format(format or folder), tokenizer)

    return make, tokenizer, False


def _blocks(ids: list[int], pieces: list[str], mask: list[int], special: frozenset[int], width: int) -> list[Text]:
    """Lines of three: pieces, ids and marks, each token in a column of its own."""
    from rich.cells import cell_len
    from rich.text import Text

    lines: list[Text] = []
    rows = [Text("  "), Text("  "), Text("  ")]
    used = 2
    for i, piece, supervised in zip(ids, pieces, mask, strict=True):
        shown = "".join(_SIGNS.get(c, c if c.isprintable() else f"<{ord(c):02X}>") for c in piece)
        size = max(cell_len(shown), len(str(i))) + 1
        if used + size > width and used > 2:
            lines += rows
            rows, used = [Text("  "), Text("  "), Text("  ")], 2
        style = "magenta" if i in special else "green" if supervised else "dim"
        rows[0].append(shown + " " * (size - cell_len(shown)), style)
        rows[1].append(str(i).ljust(size), "dim")
        rows[2].append(("■" if supervised else "·").ljust(size), "green" if supervised else "dim")
        used += size
    return lines + rows if used > 2 else lines
