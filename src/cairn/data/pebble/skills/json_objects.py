"""Making a JSON object out of a sentence: the asked keys, in the asked order, with numbers as numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

from cairn.data.pebble import tables
from cairn.data.pebble.draw import Dice, held_out
from cairn.data.pebble.skill import Draft, Skill, ask

SHARE = 0.1

_TEMPLATES = (
    "Write this as JSON with the keys {keys}: {text}", "Make a JSON object with {keys}. {text}", "{text} Give me {keys} as JSON.",
    "Turn this into JSON ({keys}): {text}", "{text} Put {keys} into a JSON object.", "Read this and answer in JSON with {keys}: {text}",
)  # fmt: skip
# key -> what the sentence says of it
_PERSON = {"age": "is {} years old", "city": "lives in {}", "job": "works as a {}", "color": "likes {}"}
_THING = {"color": "is {}", "price": "costs {} dollars", "city": "comes from {}", "sold": "was sold {} times"}


def _value(dice: Dice, key: str) -> str | int:
    if key in ("age", "price", "sold"):
        return dice.between(key, 2, 99)
    return dice.pick(key, {"city": tables.CITIES, "job": tables.JOBS, "color": tables.COLOURS}[key])


def _sentence(dice: Dice) -> tuple[dict[str, Any], str]:
    """The values and the sentence that holds them."""
    person = dice.chance("person", 0.6)
    parts = dice.some("parts", list(_PERSON if person else _THING), dice.between("n", 1, 3))
    values: dict[str, Any] = {"name": dice.pick("name", tables.NAMES)} if person else {"item": dice.pick("item", tables.ITEMS)}
    said: list[str] = []
    for key in parts:
        values[key] = _value(dice, key)
        said.append((_PERSON if person else _THING)[key].format(values[key]))
    subject = values["name"] if person else f"The {values['item']}"
    text = f"{subject} {said[0]}." if len(said) == 1 else f"{subject} {', '.join(said[:-1])} and {said[-1]}."
    return values, text


def _drafts(seed: int, split: str) -> Iterator[Draft]:
    for index in count():
        dice = Dice(seed, f"json/{split}", index)
        values, text = _sentence(dice)
        # Up to one part of the sentence is left out of the object: the model must read which keys are asked.
        keys = dice.shuffled("keys", list(values))
        if len(keys) > 2 and dice.chance("fewer", 0.4):
            keys = keys[:-1]
        listed = f"{', '.join(keys[:-1])} and {keys[-1]}"
        key = f"json/{text}"
        question = dice.pick("template", _TEMPLATES).format(keys=listed, text=text)
        expected = {k: values[k] for k in keys}
        yield Draft(keys=(key,), held=held_out(key, SHARE), messages=ask(question, json.dumps(expected)), expected=expected)


def _statements(seed: int) -> Iterator[str]:
    """A sentence and three objects of it: which keys and in which order stands before each."""
    for index in count():
        dice = Dice(seed, "json/text", index)
        values, text = _sentence(dice)
        if held_out(f"json/{text}", SHARE):
            continue
        lines = [text]
        for k in range(3):
            keys = dice.some(f"keys/{k}", list(values), dice.between(f"n/{k}", 2, len(values)))
            lines.append(f"{', '.join(keys)}: {json.dumps({key: values[key] for key in keys})}")
        yield "\n".join(lines)


SKILLS = (Skill(name="json", drafts=_drafts, statements=_statements, train=3000, test=200, pretrain=1200),)
