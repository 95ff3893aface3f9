"""The proof that no test question is in training. Works on rows of any corpus whose rows have the shape of Cairn's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from cairn.errors import UserError

Row = dict[str, Any]

_SPACES = re.compile(r"\s+")


def normalise(text: str) -> str:
    """Text with case, width, punctuation at its ends and runs of white space made equal."""
    folded = _SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return folded.strip(" .,:;!?。、！？")


def questions(row: Row) -> list[str]:
    """What is asked in a dialogue, or said in a text line by line, normalised."""
    if "messages" in row:
        return [normalise(m["content"]) for m in row["messages"] if m["role"] == "user"]
    return [normalise(line) for line in row["text"].split("\n")]


def check_disjoint(train: Iterable[Row], test: Iterable[Row]) -> dict[str, int]:
    """Check that no question of `test` is asked anywhere in `train`.

    Compared are the normalised text of every user turn (whatever tools are offered beside it) and of every line of plain
    text, and the "keys" in the rows' "meta", which name what is asked whatever its wording.

    Returns:
        Counts of what was compared, for the record.

    Raises:
        UserError: naming the first question that both sides share.
    """
    asked: dict[str, str] = {}
    keys: dict[str, str] = {}
    n = 0
    for row in test:
        n += 1
        where = str(row.get("id", f"row {n}"))
        # Of a dialogue's turns only the last is what the test asks.
        asked[questions(row)[-1]] = where
        keys |= dict.fromkeys(row.get("meta", {}).get("keys", ()), where)
    compared = 0
    for row in train:
        for text in questions(row):
            compared += 1
            if text in asked:
                _shared(f"the question '{text}'", asked[text], row)
        for key in row.get("meta", {}).get("keys", ()):
            if key in keys:
                _shared(f"the key '{key}'", keys[key], row)
    return {"test_rows": n, "test_questions": len(asked), "test_keys": len(keys), "train_texts": compared, "shared": 0}


def _shared(what: str, test: str, row: Row) -> None:
    raise UserError(
        f"{what} is in the test and in training",
        where=f"test {test}, train {row.get('id', '')}",
        remedy="hold the question out by its key, or draw the test anew",
    )
