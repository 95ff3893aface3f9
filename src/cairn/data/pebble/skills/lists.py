"""Work on short lists of words: first, last, nth, reverse, count, join. A list is held out in every order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from cairn.data.pebble import tables
from cairn.data.pebble.draw import Dice, held_out
from cairn.data.pebble.skill import Draft, Skill, ask

SHARE = 0.1

_PLACES = ("first", "second", "third", "fourth", "fifth")
# task -> templates
_TASKS = {
    "nth": ("What is the {place} word of this list: {list}?", "Name the {place} word: {list}",
            "Here is a list: {list}. Which word is {place}?", "Give me the {place} item of the list {list}."),
    "last": ("What is the last word of this list: {list}?", "Name the last word: {list}", "Here is a list: {list}. Which word is last?",
             "Give me the last item of the list {list}."),
    "reverse": ("Reverse this list: {list}", "Write these words backwards: {list}", "Say it the other way round: {list}"),
    "count": ("How many words are in this list: {list}?", "Count the words: {list}", "Here is a list: {list}. How many words is that?"),
    "join": ("Join these words with dashes: {list}", "Put dashes between these words: {list}", "Write this with dashes: {list}"),
}  # fmt: skip


def _answer(task: str, words: list[str], place: int) -> str:
    if task == "nth":
        return f"The {_PLACES[place]} word is {words[place]}."
    if task == "last":
        return f"The last word is {words[-1]}."
    if task == "reverse":
        return f"Reversed: {', '.join(reversed(words))}"
    if task == "count":
        return f"The list has {len(words)} words."
    return f"Joined: {' - '.join(words)}"


def _words(dice: Dice) -> list[str]:
    return dice.some("words", tables.WORDS, dice.between("n", 3, 5))


def _key(words: list[str]) -> str:
    # Sorted, because the answer to "reverse this" shows the list in another order.
    return f"lists/{' '.join(sorted(words))}"


def _drafts(seed: int, split: str) -> Iterator[Draft]:
    for index in count():
        dice = Dice(seed, f"lists/{split}", index)
        words = _words(dice)
        task = dice.pick("task", list(_TASKS))
        place = dice.below("place", len(words))
        question = dice.pick("template", _TASKS[task]).format(list=", ".join(words), place=_PLACES[place])
        key = _key(words)
        yield Draft(keys=(key,), held=held_out(key, SHARE), messages=ask(question, _answer(task, words, place)), meta={"kind": task})


def _statements(seed: int) -> Iterator[str]:
    """A list and six things that can be said of it."""
    for index in count():
        dice = Dice(seed, "lists/text", index)
        words = _words(dice)
        if held_out(_key(words), SHARE):
            continue
        said = []
        for k, task in enumerate(dice.some("tasks", ("nth", "nth", "nth", "last", "reverse", "reverse", "count", "join"), 6)):
            place = dice.below(f"place/{k}", len(words))
            said.append(_answer(task, words, place))
        yield f"List: {', '.join(words)}\n" + "\n".join(said)


SKILLS = (Skill(name="lists", drafts=_drafts, statements=_statements, train=4000, test=240, pretrain=2000),)
