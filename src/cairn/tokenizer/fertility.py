"""How many tokens a tokenizer needs for text, by language. Knows tokenizers; where the text comes from is not its business.

Fertility is tokens for each word. Words are what white space separates, which says nothing for Japanese or Chinese: there
read the characters for each token. Broken pieces are tokens that are no whole characters: many of them mean that a script
was hardly in the tokenizer's training text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cairn.tokenizer.load import Tokenizer


@dataclass
class Count:
    """Sums over the texts of one language."""

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0
    broken: int = 0

    def row(self, language: str) -> dict[str, Any]:
        """The figures to show."""
        tokens = max(self.tokens, 1)
        return {
            "language": language,
            "documents": self.documents,
            "bytes": self.bytes,
            "characters": self.characters,
            "words": self.words,
            "tokens": self.tokens,
            "tokens_per_word": round(self.tokens / max(self.words, 1), 4),
            "characters_per_token": round(self.characters / tokens, 4),
            "bytes_per_token": round(self.bytes / tokens, 4),
            "broken_pieces": round(self.broken / tokens, 4),
        }


def fertility(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """One row of figures for each language, and one for "all" where there are several.

    Args:
        tokenizer: what to measure.
        texts: (language, text); read once, never held together.
    """
    counts: dict[str, Count] = {}
    whole = _Whole(tokenizer)
    for language, text in texts:
        ids = tokenizer.encode(text)
        broken = sum(not whole(i) for i in ids)
        for name in (language, "all"):
            count = counts.setdefault(name, Count())
            count.documents += 1
            count.bytes += len(text.encode())
            count.characters += len(text)
            count.words += len(text.split())
            count.tokens += len(ids)
            count.broken += broken
    names = sorted(name for name in counts if name != "all")
    return [counts[name].row(name) for name in ([*names, "all"] if len(names) != 1 else names) if name in counts]


class _Whole:
    """Whether an id stands for whole characters; remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, bool] = {}

    def __call__(self, token: int) -> bool:
        if token not in self.known:
            try:
                self.tokenizer.token_bytes(token).decode()
                self.known[token] = True
            except UnicodeDecodeError:
                self.known[token] = False
        return self.known[token]
