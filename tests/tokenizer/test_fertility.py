"""Tokens for each word, by language."""

from __future__ import annotations

from cairn.chat.format import load_format
from cairn.tokenizer.fertility import fertility
from cairn.tokenizer.train import byte_tokenizer


def test_figures_of_a_byte_tokenizer_are_known() -> None:
    texts = [("en", "ab cd"), ("ko", "가나"), ("en", "e")]
    rows = {row["language"]: row for row in fertility(byte_tokenizer(load_format("k2")), iter(texts))}
    assert list(rows) == ["en", "ko", "all"]
    assert rows["en"] == {
        "language": "en",
        "documents": 2,
        "bytes": 6,
        "characters": 6,
        "words": 3,
        "tokens": 6,
        "tokens_per_word": 2.0,
        "characters_per_token": 1.0,
        "bytes_per_token": 1.0,
        "broken_pieces": 0.0,
    }
    assert (rows["ko"]["tokens_per_word"], rows["ko"]["characters_per_token"], rows["ko"]["broken_pieces"]) == (6.0, 0.3333, 1.0)
    assert (rows["all"]["documents"], rows["all"]["tokens"], rows["all"]["broken_pieces"]) == (3, 12, 0.5)


def test_one_language_needs_no_total_and_no_text_gives_nothing() -> None:
    tokenizer = byte_tokenizer(load_format("k2"))
    assert [row["language"] for row in fertility(tokenizer, [("en", "a")])] == ["en"]
    assert fertility(tokenizer, []) == []
