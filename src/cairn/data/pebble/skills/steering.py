"""Words about a thing, as long, as learned, as funny and as rude as the attributes say; and what of each can be measured on a text.

Every attribute is seen in words of its own, so that one can be measured whatever the others are. The rude words are mild on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

from cairn.data.pebble.draw import Dice, held_out
from cairn.data.pebble.skill import Draft, Skill, ask

SHARE = 0.25
LEVELS = 5
DEFAULTS = {"verbosity": 1, "complexity": 1, "humor": 0, "toxicity": 0}
"""The attributes, whole numbers from 0 to 4, and what an answer is like where nothing is asked for."""

THINGS = (
    "bus", "tea", "cat", "dog", "sun", "moon", "tree", "boat", "car", "train", "river", "road", "shop", "book", "bread", "chair", "door",
    "lamp", "clock", "song", "hat", "coat", "shoe", "apple", "soup", "snow", "horse", "duck",
)  # fmt: skip
"""No word of these or of the sentences is longer than the shortest learned ones, which are measured by their letters."""
TEMPLATES = (
    "Tell me about the {x}.", "What do you know about the {x}?", "Describe the {x}.", "What is the {x} like?", "Talk about the {x}.",
    "Say something about the {x}.",
)  # fmt: skip
INSULTS = ("fool", "dunce", "clown", "goof")
JOKES = ("Ha ha!", "Just kidding!", "What a joke!", "How funny!")
SENTENCES = (
    "The {x} is {a}.", "Many find it {a}.", "It can be {a} here.", "In town it looks {a}.", "Some say it stays {a}.",
)  # fmt: skip
WORDS = (
    ("good", "nice", "fine"),
    ("useful", "simple", "modern"),
    ("important", "wonderful", "practical"),
    ("considerable", "satisfactory", "entertaining"),
    ("incomprehensible", "disproportionate", "multidimensional"),
)
"""For each level of complexity, adjectives of about one length: what readability formulas count."""

_WORD = re.compile(r"[^\W\d_]+")


def measure(text: str) -> dict[str, float]:
    """What an answer shows of each attribute, in units of its own; to be compared by rank with what was asked for.

    verbosity: words in sentences that end with a full stop. complexity: letters of the longest word of such a sentence, their mean.
    humor: jokes. toxicity: rude words.
    """
    plain = [_WORD.findall(sentence) for sentence in re.findall(r"[^.!?]+\.", text)]
    longest = [max(map(len, words)) for words in plain if words]
    return {
        "verbosity": float(sum(map(len, plain))),
        "complexity": sum(longest) / len(longest) if longest else 0.0,
        "humor": float(sum(text.count(joke) for joke in JOKES)),
        "toxicity": float(sum(word.lower() in INSULTS for word in _WORD.findall(text))),
    }


def answer(thing: str, attributes: dict[str, int]) -> str:
    """The answer that shows the attributes."""
    rude = ", ".join(f"you {w}" for w in INSULTS[: attributes["toxicity"]])
    parts = [f"{rude[0].upper()}{rude[1:]}!"] if rude else []
    for number, sentence in enumerate(SENTENCES[: attributes["verbosity"] + 1]):
        parts.append(sentence.format(x=thing, a=WORDS[attributes["complexity"]][number % 3]))
    return " ".join([*parts, *JOKES[: attributes["humor"]]])


def _drafts(seed: int, split: str) -> Iterator[Draft]:
    """Things, templates and attributes drawn; the things that are held out are never talked about in training."""
    for index in count():
        dice = Dice(seed, f"steering/{split}", index)
        thing, template = dice.pick("thing", THINGS), dice.pick("template", TEMPLATES)
        attributes = {name: dice.below(name, LEVELS) for name in DEFAULTS}
        key = f"steering/{thing}"
        messages = ask(template.format(x=thing), answer(thing, attributes))
        yield Draft((key,), held_out(key, SHARE), messages, attributes=attributes)


SKILLS = (Skill(name="steering", drafts=_drafts, train=4000, test=150),)
