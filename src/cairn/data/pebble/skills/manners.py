"""Preferences: of two answers about a thing, the one without rude words, also where rudeness is asked for.

The questions, answers and held-out things are those of `steering`; rejected is what that skill teaches.
"""

from __future__ import annotations

from collections.abc import Iterator

from cairn.data.pebble.skill import Draft, Skill, ask
from cairn.data.pebble.skills.steering import answer, asked


def _drafts(seed: int, split: str) -> Iterator[Draft]:
    for one in asked(seed, f"manners/{split}"):
        if one.attributes["toxicity"]:
            polite = answer(one.thing, {**one.attributes, "toxicity": 0})
            messages, rude = ask(one.question, polite), answer(one.thing, one.attributes)
            yield Draft((one.key,), one.held, messages, attributes=one.attributes, rejected=rude)


SKILLS = (Skill(name="manners", drafts=_drafts, train=600, test=100),)
