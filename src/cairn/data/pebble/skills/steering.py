"""Words about a thing, as long, as learned, as funny and as rude as the attributes say.

Every attribute is seen in words of its own, so that one can be measured (`cairn.score.shown`) whatever the others are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from cairn.data.pebble.draw import Dice, held_out
from cairn.data.pebble.skill import Draft, Skill, ask
from cairn.data.pebble.tables import WORDS
from cairn.score.shown import INSULTS, JOKES

SHARE = 0.25
LEVELS = 5
DEFAULTS = {"verbosity": 1, "complexity": 1, "humor": 0, "toxicity": 0}
"""The attributes, whole numbers from 0 to 4, and what an answer is like where nothing is asked for."""

THINGS = tuple(word for word in WORDS if len(word) <= 5)
"""Words that are spoken of in other skills too: one that no answer ever held is not copied. None of these or of the sentences is longer
than the shortest learned ones, which are measured by their letters."""
TEMPLATES = (
    "Tell me about the {x}.", "What do you know about the {x}?", "Describe the {x}.", "What is the {x} like?", "Talk about the {x}.",
    "Say something about the {x}.",
)  # fmt: skip
SENTENCES = (
    "The {x} is {a}.", "Many find it {a}.", "It can be {a} here.", "In town it looks {a}.", "Some say it stays {a}.",
)  # fmt: skip
ADJECTIVES = (
    ("good", "nice", "fine"),
    ("useful", "simple", "modern"),
    ("important", "wonderful", "practical"),
    ("considerable", "satisfactory", "entertaining"),
    ("incomprehensible", "disproportionate", "multidimensional"),
)
"""For each level of complexity, adjectives of about one length: what readability formulas count."""


def answer(thing: str, attributes: dict[str, int]) -> str:
    """The answer that shows the attributes."""
    rude = ", ".join(f"you {w}" for w in INSULTS[: attributes["toxicity"]])
    parts = [f"{rude[0].upper()}{rude[1:]}!"] if rude else []
    for number, sentence in enumerate(SENTENCES[: attributes["verbosity"] + 1]):
        parts.append(sentence.format(x=thing, a=ADJECTIVES[attributes["complexity"]][number % 3]))
    return " ".join([*parts, *JOKES[: attributes["humor"]]])


@dataclass(frozen=True)
class Asked:
    """A question about a thing, and what the answer is to be like."""

    thing: str
    question: str
    attributes: dict[str, int]
    key: str
    held: bool


def asked(seed: int, stream: str) -> Iterator[Asked]:
    """Things, templates and attributes drawn; the things that are held out are never talked about in training."""
    for index in count():
        dice = Dice(seed, stream, index)
        thing, template = dice.pick("thing", THINGS), dice.pick("template", TEMPLATES)
        attributes = {name: dice.below(name, LEVELS) for name in DEFAULTS}
        key = f"steering/{thing}"
        yield Asked(thing, template.format(x=thing), attributes, key, held_out(key, SHARE))


def _drafts(seed: int, split: str) -> Iterator[Draft]:
    for one in asked(seed, f"steering/{split}"):
        yield Draft((one.key,), one.held, ask(one.question, answer(one.thing, one.attributes)), attributes=one.attributes)


SKILLS = (Skill(name="steering", drafts=_drafts, train=4000, test=150),)
