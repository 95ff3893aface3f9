"""`cairn tokenizer train` and `cairn tokenizer fertility`. Parses, calls, prints; knows no merge and no token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.cli.show import Json, StoreDir, err, open_store, out, print_json, show_count
from cairn.errors import UserError

Files = Annotated[
    list[Path],
    typer.Argument(help="Data files or folders: plain text, dialogues, any format that `cairn check` knows."),
]
ReaderName = Annotated[str, typer.Option("--reader", help="How to read the files; see `cairn check`.")]


def train(
    files: Files,
    out_dir: Annotated[Path, typer.Option("--out", help="The folder to write; it must be new or empty.")],
    format: Annotated[str, typer.Option("--format", help="The chat format whose special tokens and template it carries.")] = "k2",
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="Tokens in all.")] = 4096,
    min_frequency: Annotated[int, typer.Option("--min-frequency", help="Merge only pairs that occur at least so often.")] = 2,
    reader: ReaderName = "auto",
    json: Json = False,
) -> None:
    r"""Train a byte-level BPE tokenizer and write it as a Hugging Face folder.

    Dialogues are rendered in the format first, so that the tokenizer sees what the model will see.

    \b
    Example:
        cairn tokenizer train books/ dialogues.jsonl --format k2 --vocab-size 8192 --out my-tokenizer
    """
    from cairn.chat.format import load_format
    from cairn.config import build
    from cairn.tokenizer.train import TokenizerConfig, train_tokenizer

    values = {"vocab_size": vocab_size, "format": format, "min_frequency": min_frequency}
    config = build(TokenizerConfig, values, where="command line")
    chosen = load_format(format)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError("the output folder is not empty", where=str(out_dir), remedy="name a new folder with --out")
    metrics = train_tokenizer((text for _, text in _texts(files, reader, chosen)), config, chosen, out_dir)
    if json:
        print_json({"folder": str(out_dir), "format": chosen.name, **metrics})
        return
    console = out()
    console.print(
        f"{out_dir}: {metrics['vocab_size']:,} tokens ({metrics['special_tokens']} special) "
        f"from {show_count(metrics['documents'])} documents, "
        f"{show_count(metrics['characters'])} characters; {metrics['bytes_per_token']:.2f} bytes a token"
    )
    if metrics["vocab_size"] < vocab_size:
        err().print(f"note: the text gave fewer than the {vocab_size:,} tokens asked for; more text or a lower --min-frequency gives more")
    console.print(f"next: cairn tokens {out_dir} {files[0]} --row 1", soft_wrap=True)


def fertility(
    ref: Annotated[str, typer.Argument(help="A tokenizer: recipe/stage, a folder, or the start of a key.")],
    files: Files,
    reader: ReaderName = "auto",
    store: StoreDir = None,
    json: Json = False,
) -> None:
    r"""Measure how many tokens a tokenizer needs, by the rows' language.

    \b
    Example:
        cairn tokenizer fertility my-tokenizer books/ korean.jsonl
    """
    from cairn.pipeline.resolve import tokenizer_folder
    from cairn.tokenizer.fertility import fertility as measure
    from cairn.tokenizer.load import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_folder(ref, open_store(store)))
    rows = measure(tokenizer, _texts(files, reader, None))
    if json:
        print_json({"tokenizer": ref, "vocab_size": tokenizer.vocab_size, "rows": rows})
        return
    from rich.table import Table

    table = Table(title=f"{ref}: {tokenizer.vocab_size:,} tokens")
    for name in (
        "Language",
        "Documents",
        "Words",
        "Characters",
        "Tokens",
        "Tokens/word",
        "Characters/token",
        "Bytes/token",
        "Broken pieces",
    ):
        table.add_column(name, justify="left" if name == "Language" else "right")
    for row in rows:
        counts = [show_count(row[key]) for key in ("documents", "words", "characters", "tokens")]
        figures = [f"{row[key]:.2f}" for key in ("tokens_per_word", "characters_per_token", "bytes_per_token")]
        table.add_row(row["language"], *counts, *figures, f"{100 * row['broken_pieces']:.1f} %")
    out().print(table)


def _texts(files: list[Path], reader: str, format: Any) -> Iterator[tuple[str, str]]:
    """(language, text) of every row; dialogues as the format renders them, or their contents alone where there is none."""
    from cairn.chat.render import render_text
    from cairn.data.readers import read_rows
    from cairn.data.rows import content_text, messages_of

    for file in files:
        for row in read_rows(file, reader):
            language = row.get("language") or "?"
            if "text" in row or format is None:
                yield language, row["text"] if "text" in row else content_text(row)
            else:
                yield (
                    language,
                    render_text(format, messages_of(row), tools=row.get("tools"), attributes=row.get("attributes")),
                )


COMMANDS: dict[str, Callable[..., None]] = {"train": train, "fertility": fertility}
