"""What lies beside a model's weights, tokenizer and chat format: put there, and compared between models. Knows no stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.errors import UserError

if TYPE_CHECKING:
    from cairn.chat.format import Format

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_format.yaml", "chat_template.jinja", "special_tokens_map.json")
_SAID_ELSEWHERE = ("version", "truncation", "padding", "post_processor", "decoder")
"""Parts of a tokenizer.json that do not decide which ids a text has here: limits are the recipe's, special tokens the template's."""


def give_tokenizer(tokenizer: Path, folder: Path, chat_format: str | Format | None = None) -> None:
    """Put tokenizer and format beside a model, or another format in place of the tokenizer's own."""
    from cairn.chat.format import load_format

    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    if chat_format:
        _write_format(load_format(chat_format) if isinstance(chat_format, str) else chat_format, folder)


def _write_format(chat_format: Format, folder: Path) -> None:
    """Put a format of the recipe's own choice into a tokenizer folder, template included."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings["chat_template"] = chat_format.template
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_format.yaml").write_text(chat_format.to_yaml(), encoding="utf-8")


def check_tokenizers(folders: Sequence[Path], remedy: str) -> None:
    """See that every id means the same text in all of these folders.

    Raises:
        UserError: in one it does not.
    """
    from cairn.tokenizer.load import Tokenizer

    first, *others = [Tokenizer.load(folder) for folder in folders]
    ours = first.backend.get_vocab(with_added_tokens=True)
    for folder, other in zip(folders[1:], others, strict=True):
        theirs = other.backend.get_vocab(with_added_tokens=True)
        where = f"{folders[0]} and {folder}"
        if ours != theirs:
            apart = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
            token = apart[0]
            told = " and ".join("no id" if vocab.get(token) is None else f"id {vocab[token]}" for vocab in (ours, theirs))
            what = f"the tokenizers are two: {len(apart):,} tokens have other ids, such as {token!r} ({told})"
            raise UserError(what, where=where, remedy=remedy)
        rules = [json.loads(one.backend.to_str()) for one in (first, other)]
        for name in sorted({*rules[0], *rules[1]} - set(_SAID_ELSEWHERE)):
            if rules[0].get(name) != rules[1].get(name):
                what = f"the tokenizers have one vocabulary and split texts differently: their '{name}' is not the same"
                raise UserError(what, where=where, remedy=remedy)


def check_formats(folders: Sequence[Path]) -> Path | None:
    """The first of these folders that has a chat format, which all that have one agree with; None where none has.

    Raises:
        UserError: two formats differ.
    """
    from cairn.chat.format import load_format

    known: list[tuple[Path, Any]] = []
    for folder in folders:
        if _has_format(folder):
            known.append((folder, load_format(folder)))
    for folder, one in known[1:]:
        first = known[0][1]
        for what, ours, theirs in (("template", first.template, one.template), ("stop tokens", first.stop, one.stop)):
            if ours != theirs:
                raise UserError(
                    f"the models talk in two chat formats: their {what} differ", where=f"{known[0][0]} and {folder}",
                    remedy="say which one the result is to have: format (--format) NAME of a shipped format",
                )  # fmt: skip
    return known[0][0] if known else None


def _has_format(folder: Path) -> bool:
    """Whether it has a template; one that cannot be read is an error of `load_format`."""
    settings = folder / "tokenizer_config.json"
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_format.yaml").is_file():
        return True
    try:
        return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
    except ValueError:
        return True
