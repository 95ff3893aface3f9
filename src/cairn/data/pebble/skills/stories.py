"""Sums and differences told as little stories: the numbers of `arithmetic`, whose held-out pairs are held out here as well.

The recipe trains no answer to them by example: a model that calculates can learn from a reward alone what a story asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from cairn.data.pebble.draw import Dice
from cairn.data.pebble.skill import Draft, Skill, ask
from cairn.data.pebble.skills.arithmetic import drawn, is_held, key, worked

_NAMES = ("Tom", "Anna", "Ben", "Mary", "Sam", "Lisa")
_THINGS = ("apples", "books", "coins", "eggs", "pens", "stones")
_MORE = (
    "{n} has {a} {x} and gets {b} more. How many {x} does {n} have now?",
    "There are {a} {x} in a box and {b} in a bag. How many are there?",
    "{n} finds {a} {x}, and then {b} more. How many are there now?",
)  # fmt: skip
_LESS = (
    "{n} has {a} {x} and gives {b} away. How many are left?", "There were {a} {x} in a box, and {b} of them are lost. How many are left?",
    "{n} had {a} {x} and sold {b}. How many does {n} still have?",
)  # fmt: skip


def _drafts(seed: int, split: str) -> Iterator[Draft]:
    for index in count():
        dice = Dice(seed, f"stories/{split}", index)
        a, sign, b = drawn(dice)
        told = dice.pick("story", _MORE if sign == "+" else _LESS)
        question = told.format(n=dice.pick("name", _NAMES), x=dice.pick("thing", _THINGS), a=a, b=b)
        yield Draft(
            keys=(f"arithmetic/{key(a, sign, b)}",),
            held=is_held(a, sign, b),
            messages=ask(question, worked(a, sign, b)),
            expected=a + b if sign == "+" else a - b,
            meta={"kind": "more" if sign == "+" else "less"},
        )


SKILLS = (Skill(name="stories", drafts=_drafts, train=2000, test=120),)
