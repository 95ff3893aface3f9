"""Small talk, and dialogues of several turns that mix the other skills, some under a system message.

Later turns are questions of the other skills' training side, so that nothing of a test is asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, repeat

from cairn.data.pebble.draw import Dice
from cairn.data.pebble.skill import Draft, Row, Skill, ask
from cairn.data.pebble.skills import arithmetic, facts, identity, json_objects, lists, refusal
from cairn.data.pebble.tables import SMALL_TALK

SYSTEMS = (
    "You are Pebble, a small and helpful assistant.",
    "You are a helpful assistant.",
    "You are Pebble. Answer briefly.",
    "Be kind and correct.",
)
MOST = 6
"""Turns of the longest dialogues."""
_OTHERS = (arithmetic, facts, identity, json_objects, lists, refusal)


def _training(seed: int) -> list[Iterator[Draft]]:
    """One endless stream of training drafts for each other skill."""

    def stream(drafts: Callable[[int, str], Iterable[Draft]]) -> Iterator[Draft]:
        # Finite skills begin again, so that the dialogues never run dry.
        endless = chain.from_iterable(drafts(seed, "chat") for _ in repeat(None))
        return (draft for draft in endless if not draft.held)

    return [stream(skill.drafts) for module in _OTHERS for skill in module.SKILLS if skill.drafts]


def _drafts(seed: int, split: str) -> Iterator[Draft]:
    streams = _training(seed)
    for questions, answer in SMALL_TALK:
        for question in questions:
            yield Draft(keys=(f"chat/talk/{question}",), held=False, messages=ask(question, answer), meta={"kind": "talk"})
    for index in count():
        dice = Dice(seed, f"chat/{split}", index)
        messages: list[Row] = [{"role": "system", "content": dice.pick("system", SYSTEMS)}] if dice.chance("with system", 0.4) else []
        keys: list[str] = []
        turns = dice.between("turns", 1 if messages else 2, MOST)
        for turn in range(turns):
            if dice.chance(f"talk/{turn}", 0.3):
                # Greetings open a dialogue; thanks and goodbyes close it.
                questions, answer = SMALL_TALK[0] if turn == 0 else dice.pick(f"which/{turn}", SMALL_TALK[1:3])
                messages += ask(dice.pick(f"words/{turn}", questions), answer)
            else:
                draft = next(dice.pick(f"skill/{turn}", streams))
                messages += draft.messages
                keys += draft.keys
        yield Draft(keys=tuple(keys), held=False, messages=messages, meta={"kind": "turns"})


SKILLS = (Skill(name="chat", drafts=_drafts, train=1800),)
