"""What a skill of the built-in corpus is, and how its drafts become rows. Knows no particular skill.

A skill makes `Draft`s: a dialogue (or question and answer) with the keys of what it asks. The keys alone decide whether a
draft belongs to the test, and ride in the row's "meta" so that the split can be checked afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """One dialogue before it is a row."""

    keys: tuple[str, ...]
    """What is asked, in canonical form: a key is either in training or in the test, never in both."""
    held: bool
    """Whether the keys belong to the test."""
    messages: list[Row]
    expected: Any = None
    """What the scorer compares the answer with. None: the content of the last message."""
    tools: list[Row] | None = None
    meta: Row = field(default_factory=dict)
    """More for the scorer or for grouping ("kind")."""
    attributes: Row | None = None
    """What the answer was asked to be like."""
    rejected: str | None = None
    """An answer that is worse than the last message: in training the row is a preference."""


@dataclass(frozen=True)
class Skill:
    """A skill: where its rows come from and how many of them the corpus holds unless told otherwise."""

    name: str
    drafts: Callable[[int, str], Iterable[Draft]] | None = None
    """(seed, "train" | "test") -> drafts, possibly endless; those of the other split are skipped."""
    statements: Callable[[int], Iterable[str]] | None = None
    """seed -> texts to pretrain on, possibly endless."""
    language: str = "en"
    train: int = 0
    """Rows for training: an upper bound where the skill can say only so many different things."""
    test: int = 0
    """Held-out rows."""
    pretrain: int = 0
    """Texts."""


def ask(question: str, answer: str, *, system: str = "") -> list[Row]:
    """The messages of one question and its answer."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def rows(skill: Skill, seed: int, split: str, n: int) -> Iterator[Row]:
    """At most `n` rows of one split, no question twice within it."""
    seen: set[str] = set()
    tries = 0
    if skill.drafts is None or n <= 0:
        return
    for draft in skill.drafts(seed, split):
        tries += 1
        if tries > 40 * n + 4000:
            # An endless skill that has said all it can would otherwise never come back.
            return
        if draft.held != (split == "test"):
            continue
        # In training one question may come back beside other tools; a test asks each question once, or once for each wish.
        beside = (draft.tools if split == "train" else None, draft.attributes)
        question = repr(([m["content"] for m in draft.messages if m["role"] == "user"], beside))
        if question in seen:
            continue
        seen.add(question)
        row: Row = {"messages": draft.messages}
        if draft.rejected is not None and split == "train":
            worse = {"role": "assistant", "content": draft.rejected}
            row = {"messages": draft.messages[:-1], "chosen": draft.messages[-1:], "rejected": [worse]}
        if draft.tools is not None:
            row["tools"] = draft.tools
        if draft.attributes is not None:
            row["attributes"] = draft.attributes
        row |= {"source": skill.name, "language": skill.language, "id": f"{skill.name}-{split}-{len(seen) - 1:05d}"}
        meta: Row = {"skill": skill.name, "keys": list(draft.keys), **draft.meta}
        if split == "test":
            meta["expected"] = draft.messages[-1]["content"] if draft.expected is None else draft.expected
        row["meta"] = meta
        yield row
        if len(seen) >= n:
            return


def texts(skill: Skill, seed: int, n: int) -> Iterator[Row]:
    """At most `n` rows of plain text."""
    if skill.statements is None or n <= 0:
        return
    for k, text in enumerate(skill.statements(seed)):
        if k >= n:
            return
        yield {"text": text, "source": f"{skill.name}-text", "language": skill.language, "id": f"{skill.name}-text-{k:05d}"}
