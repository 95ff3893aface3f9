"""Pebble's corpus: texts and dialogues that are generated from small tables, with a held-out test for each skill.

    corpus = generate(seed=0, sizes=Sizes(scale=0.1))
    corpus.pretrain            # rows of plain text
    corpus.train["functions"]  # dialogues
    corpus.test["functions"]   # held-out dialogues: the last message is the reference answer, meta["expected"] the scorer's

A skill is one module in skills/ that defines `SKILLS` (name, drafts, statements, default sizes) and stands in
skills/__init__.py; nothing else needs to know it. Everything is a function of the seed; which questions are held out is not
even that, so that models of different seeds share one test.
"""

from __future__ import annotations

from dataclasses import dataclass

from cairn.data.pebble.disjoint import check_disjoint, normalise
from cairn.data.pebble.draw import order
from cairn.data.pebble.sizes import Sizes
from cairn.data.pebble.skill import Row, rows, texts
from cairn.data.pebble.skills import ALL

__all__ = ["ALL", "Corpus", "Sizes", "check_disjoint", "generate", "normalise"]


@dataclass(frozen=True)
class Corpus:
    """A generated corpus."""

    pretrain: list[Row]
    train: dict[str, list[Row]]
    test: dict[str, list[Row]]

    def check(self) -> dict[str, int]:
        """`check_disjoint` over everything that is trained on, texts included."""
        trained = [*self.pretrain, *(row for part in self.train.values() for row in part)]
        return check_disjoint(trained, [row for part in self.test.values() for row in part])


def generate(seed: int, sizes: Sizes | None = None) -> Corpus:
    """The whole corpus for a seed."""
    sizes = sizes or Sizes()
    pretrain: list[Row] = []
    train: dict[str, list[Row]] = {}
    test: dict[str, list[Row]] = {}
    for name, skill in ALL.items():
        pretrain += texts(skill, seed, sizes.of(name, "pretrain"))
        for part, split in ((train, "train"), (test, "test")):
            made = list(rows(skill, seed, split, sizes.of(name, split)))  # type: ignore[arg-type]
            if made:
                part[name] = made
    return Corpus(order(pretrain, seed, "pretrain"), train, test)
