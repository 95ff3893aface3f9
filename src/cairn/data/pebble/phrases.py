"""Short questions in another language: the shape that the Korean and the Japanese skill share. Knows neither language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from cairn.data.pebble.draw import held_templates, order
from cairn.data.pebble.skill import Draft, ask


@dataclass(frozen=True)
class Topic:
    """Things of one sort: each is asked through every template but one in training, and through that one in the test."""

    name: str
    items: tuple[tuple[str, ...], ...]
    """What fills the braces {0}, {1} ... of templates and answer."""
    asks: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Talk:
    """Small talk: any of the questions gets the one answer."""

    asks: tuple[str, ...]
    answer: str


def drafts(language: str, topics: tuple[Topic, ...], talks: tuple[Talk, ...], seed: int, split: str) -> Iterator[Draft]:
    """Every combination of item and template."""
    combos: list[Draft] = []
    for topic in topics:
        for item in topic.items:
            key = f"{language}/{topic.name}/{item[0]}"
            held = held_templates(key, len(topic.asks), 1)
            for t, template in enumerate(topic.asks):
                messages = ask(template.format(*item), topic.answer.format(*item))
                combos.append(Draft((f"{key}/{t}",), t in held, messages, meta={"kind": topic.name}))
    for talk in talks:
        combos += [Draft((f"{language}/talk/{text}",), False, ask(text, talk.answer), meta={"kind": "talk"}) for text in talk.asks]
    yield from order(combos, seed, f"{language}/{split}")


def statements(language: str, topics: tuple[Topic, ...], seed: int) -> Iterator[str]:
    """Four answers a text, every one once before any comes twice."""
    said = [topic.answer.format(*item) for topic in topics for item in topic.items]
    lines: list[str] = []
    for epoch in count():
        for line in order(said, seed, f"{language}/text/{epoch}"):
            lines.append(line)
            if len(lines) == 4:
                yield " ".join(lines) if language == "korean" else "".join(lines)
                lines = []


