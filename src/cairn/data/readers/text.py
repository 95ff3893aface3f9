"""The readers of plain text: files of it, and JSON rows or tables with a `text` column and facts about it.
Knows records of this shape; no format of chat, no tokenizer.
"""

from __future__ import annotations

from typing import Any

from cairn.data.readers.base import document_reader, leftovers, record_reader, text_of
from cairn.data.rows import KEYS, Row

FACTS = frozenset({
    "url", "timestamp", "date", "added", "created", "crawl", "dump", "title", "author", "lang", "score", "meta", "metadata", "file_path",
    "token_count", "language_score", "int_score", "quality", "warc_date", "minhash_cluster_size",
})  # fmt: skip
"""Keys that web corpora put beside `text`. With any other key `auto` would not know whether the text is all that is to be learned."""


@document_reader("text", help="plain text: a document a file, or between two separators")
def text(document: str) -> Row:
    """White space around a document is not part of it."""
    return {"text": document.strip()}


def _detect(record: dict[str, Any]) -> bool:
    return "text" in record and set(record) <= FACTS | set(KEYS) | {"text"} and not set(record) <= set(KEYS) and "messages" not in record


@record_reader("text_rows", help="rows with a 'text' and facts about it, as web corpora have them", detect=_detect)
def text_rows(record: dict[str, Any]) -> Row:
    """Short facts are kept under `meta`."""
    meta = record.get("meta")
    row: Row = {"text": text_of(record, "text"), **leftovers(record, ("text", "meta"))}
    if isinstance(meta, dict):
        row["meta"] = {**row.get("meta", {}), **meta}
    return row
