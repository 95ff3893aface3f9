"""The mix table: how large each subset is and how long its questions and answers are. Streams; keeps sums, never rows.

A *query* is a user's turn, a *reply* an assistant's (its content, and its tool calls as JSON). Averages of turns are per
dialogue, averages of lengths per turn, in tokens of the turn's text alone. `#Tokens` counts the rendered row, with the
format's own tokens, where a renderer is given, and the text of all turns where not. Without a tokenizer, words between
white space stand for tokens, and the header says so. A preference counts its prompt and its chosen answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cairn.data.encode import RowRenderer, TextTokenizer
from cairn.data.rows import Row, messages_of, reply_text

PLAIN = "not instruction data"


@dataclass
class Subset:
    """The sums of one subset."""

    tokens: int = 0
    rows: int = 0
    dialogues: int = 0
    queries: int = 0
    query_tokens: int = 0
    replies: int = 0
    reply_tokens: int = 0

    def add(self, other: Subset) -> None:
        """Add another's sums."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_row(self, name: str) -> dict[str, Any]:
        """The table's row as numbers; averages are None for plain text."""
        return {
            "subset": name,
            "tokens": self.tokens,
            "rows": self.rows,
            "avg_queries": _ratio(self.queries, self.dialogues),
            "avg_query_length": _ratio(self.query_tokens, self.queries) if self.dialogues else None,
            "avg_replies": _ratio(self.replies, self.dialogues),
            "avg_reply_length": _ratio(self.reply_tokens, self.replies) if self.dialogues else None,
        }


class MixTable:
    """The mix table of the rows that were added.

    Args:
        tokenizer: counts tokens; words between white space are counted without it.
        renderer: renders dialogues for `#Tokens`; the text of their turns is counted without it. Needs a tokenizer.
    """

    def __init__(self, tokenizer: TextTokenizer | None = None, renderer: RowRenderer | None = None) -> None:
        self.unit = "tokens" if tokenizer else "words"
        self._count: Callable[[str], int] = (lambda text: len(tokenizer.encode(text))) if tokenizer else (lambda text: len(text.split()))
        self._tokenizer, self._renderer = tokenizer, renderer if tokenizer else None
        self._subsets: dict[str, Subset] = {}

    def add(self, row: Row, subset: str | None = None, tokens: int | None = None) -> None:
        """Count a row under `subset`, or under its source. `tokens` are those of the rendered row, where they are known already."""
        one = Subset(rows=1)
        if "text" in row:
            one.tokens = self._count(row["text"]) + self._around() if tokens is None else tokens
        else:
            self._add_dialogue(one, row, tokens)
        self._subsets.setdefault(subset or row.get("source") or "unnamed", Subset()).add(one)

    def _around(self) -> int:
        """Tokens that encoding puts around a text: where rows count as rendered, plain text does too."""
        if self._renderer is None or self._tokenizer is None:
            return 0
        return (self._tokenizer.bos_id is not None) + (self._tokenizer.eos_id is not None)

    def _add_dialogue(self, one: Subset, row: Row, known: int | None) -> None:
        one.dialogues = 1
        messages = messages_of(row)
        for message in messages:
            tokens = self._count(reply_text(message))
            one.tokens += tokens
            if message["role"] == "user":
                one.queries += 1
                one.query_tokens += tokens
            elif message["role"] == "assistant":
                one.replies += 1
                one.reply_tokens += tokens
        if known is not None:
            one.tokens = known
        elif self._renderer:
            one.tokens = len(self._renderer.render(messages, tools=row.get("tools"), attributes=row.get("attributes")).ids)

    def as_dict(self) -> dict[str, Any]:
        """{"unit", "subsets": […], "total": {…}}, in the order in which subsets first came."""
        total = Subset()
        for subset in self._subsets.values():
            total.add(subset)
        return {"unit": self.unit, "subsets": [s.as_row(name) for name, s in self._subsets.items()], "total": total.as_row("Total")}

def headers(unit: str) -> list[str]:
    """The table's column names; lengths say what they count where it is not tokens."""
    if unit == "tokens":
        return ["Subset", "#Tokens", "Avg. #Q", "Avg. Query Len", "Avg. #R", "Avg. Reply Len"]
    return ["Subset", f"#{unit.capitalize()}", "Avg. #Q", f"Avg. Query Len ({unit})", "Avg. #R", f"Avg. Reply Len ({unit})"]


def cells(row: Mapping[str, Any]) -> list[str]:
    """The texts of one row of `MixTable.as_dict`."""
    out = [str(row["subset"]), f"{row['tokens']:,}"]
    if row["avg_queries"] is None:
        return [*out, PLAIN, "", "", ""]
    averages = (row[k] for k in ("avg_queries", "avg_query_length", "avg_replies", "avg_reply_length"))
    return [*out, *("" if value is None else f"{value:.2f}" for value in averages)]


def _ratio(a: int, b: int) -> float | None:
    return a / b if b else None
