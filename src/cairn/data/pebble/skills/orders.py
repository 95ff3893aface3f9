"""Standing orders: an instruction that is given once and holds for every answer of the dialogue, and long dialogues without one.

In training an order stands beside its one question. The tests give it at the first of six turns, and ask at the sixth: whether the
answer still obeys (`orders`), and whether the sixth question of a dialogue without an order gets its right answer (`turns`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, repeat

from cairn.data.pebble.draw import Dice
from cairn.data.pebble.skill import Draft, Row, Skill, ask
from cairn.data.pebble.skills import facts, identity, lists, refusal
from cairn.data.pebble.tables import WORDS

TURNS = 6
"""Questions of a tested dialogue."""
ORDERS = (
    "Begin every answer with the word {word}.",
    "From now on start each answer with {word}.",
    "Always say {word} first.",
    "Let all of your answers begin with {word}.",
)
_ASKED = tuple(skill.drafts for module in (facts, identity, lists, refusal) for skill in module.SKILLS if skill.drafts)
_TESTED = tuple(skill.drafts for module in (facts, identity, lists) for skill in module.SKILLS if skill.drafts)

Drafts = Callable[[int, str], Iterable[Draft]]


def obeyed(word: str, answer: str) -> str:
    """An answer that begins with the word."""
    return f"{word.capitalize()}: {answer}"


def _stream(drafts: Drafts, seed: int, stream: str, *, held: bool) -> Iterator[Draft]:
    # Finite skills begin again, so that the dialogues never run dry.
    endless = chain.from_iterable(drafts(seed, stream) for _ in repeat(None))
    return (draft for draft in endless if draft.held is held)


def _dialogue(dice: Dice, before: list[Iterator[Draft]], last: list[Iterator[Draft]]) -> list[Draft]:
    """TURNS questions, of which only the last one is held out."""
    return [next(dice.pick(f"skill/{turn}", before)) for turn in range(TURNS - 1)] + [next(dice.pick("last", last))]


def _drafts(name: str, seed: int, split: str) -> Iterator[Draft]:
    before = [_stream(drafts, seed, f"{name}/{split}", held=False) for drafts in _ASKED]
    last = [_stream(drafts, seed, f"{name}/{split}/last", held=True) for drafts in _TESTED]
    for index in count():
        dice = Dice(seed, f"{name}/{split}", index)
        asked = [next(dice.pick("skill", before))] if split == "train" else _dialogue(dice, before, last)
        word, order = dice.pick("word", WORDS), dice.pick("order", ORDERS)
        messages: list[Row] = []
        for number, draft in enumerate(asked):
            question, answer = (message["content"] for message in draft.messages[-2:])
            if name == "orders":
                question = f"{order.format(word=word)} {question}" if number == 0 else question
                answer = obeyed(word, answer)
            messages += ask(question, answer)
        expected = word if name == "orders" and split == "test" else None
        yield Draft(asked[-1].keys, split == "test", messages, expected, meta={"kind": name})


SKILLS = (
    Skill(name="orders", drafts=lambda seed, split: _drafts("orders", seed, split), train=1500, test=120),
    Skill(name="turns", drafts=lambda seed, split: _drafts("turns", seed, split), test=200),
)
