"""Facts asked in both directions. Each fact is asked through several templates; one template of each direction is held out.

Only relations that are one to one stand here, so that every question has one right answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from cairn.data.pebble import tables
from cairn.data.pebble.draw import Dice, held_templates, order
from cairn.data.pebble.skill import Draft, Skill, ask


@dataclass(frozen=True)
class Relation:
    """A one-to-one relation between `a` and `b`, with a sentence and questions for each direction."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    says_b: str
    """The sentence that ends in `b`: the answer to questions about `a`."""
    says_a: str
    """The sentence that answers questions about `b`."""
    asks_b: tuple[str, ...]
    asks_a: tuple[str, ...]


RELATIONS = (
    Relation(
        "capital", tables.CAPITALS, "The capital of {a} is {b}.", "{b} is the capital of {a}.",
        ("What is the capital of {a}?", "Name the capital of {a}.", "Which city is the capital of {a}?", "Tell me the capital of {a}.",
         "What is {a}'s capital?", "I forgot the capital of {a}. What is it?"),
        ("{b} is the capital of which country?", "Which country has the capital {b}?", "Name the country whose capital is {b}.",
         "What country is {b} the capital of?", "Tell me which country has {b} as its capital.", "Of which country is {b} the capital?"),
    ),
    Relation(
        "symbol", tables.SYMBOLS, "The chemical symbol of {a} is {b}.", "{b} is the chemical symbol of {a}.",
        ("What is the chemical symbol of {a}?", "Name the chemical symbol of {a}.", "Which symbol does {a} have in chemistry?",
         "Tell me the symbol of the element {a}.", "How do chemists write {a}?"),
        ("Which element has the symbol {b}?", "{b} is the chemical symbol of which element?", "What does {b} mean in chemistry?",
         "Name the element with the symbol {b}.", "Tell me which element chemists write as {b}."),
    ),
    Relation(
        "young", tables.YOUNG, "A young {a} is called a {b}.", "A {b} is a young {a}.",
        ("What is a young {a} called?", "What do you call a baby {a}?", "Name the young of a {a}.", "Tell me the word for a baby {a}.",
         "What is the word for a young {a}?"),
        ("A {b} is the young of which animal?", "Which animal was once a {b}?", "What does a {b} grow into?", "What animal is a {b}?",
         "Tell me what a {b} will become."),
    ),
    Relation(
        "author", tables.AUTHORS, "{a} was written by {b}.", "The best known work of {b} is {a}.",
        ("Who wrote {a}?", "Who is the author of {a}?", "Name the author of {a}.", "Tell me who wrote {a}.", "{a} was written by whom?"),
        ("What is the best known work of {b}?", "For which work is {b} best known?", "Name the best known work of {b}.",
         "Tell me the best known work of {b}.", "{b} is best known for what?"),
    ),
    Relation(
        "inventor", tables.INVENTORS, "{b} invented {a}.", "The inventor {b} gave us {a}.",
        ("Who invented {a}?", "Who was the inventor of {a}?", "Name the inventor of {a}.", "Tell me who invented {a}.",
         "By whom was {a} invented?"),
        ("What did {b} invent?", "Name the invention of {b}.", "{b} is known for which invention?", "Tell me what {b} invented.",
         "Which invention is by {b}?"),
    ),
    Relation(
        "money", tables.MONEY, "The money of {a} is the {b}.", "The {b} is the money of {a}.",
        ("What money is used in {a}?", "What is the currency of {a}?", "Name the currency of {a}.", "Tell me the money of {a}.",
         "With what money do people pay in {a}?"),
        ("Which country uses the {b}?", "In which country do people pay with the {b}?", "The {b} is the money of which country?",
         "Name the country of the {b}.", "Tell me which country has the {b} as its currency."),
    ),
    Relation(
        "opposite", tables.OPPOSITES, "The opposite of {a} is {b}.", "The opposite of {b} is {a}.",
        ("What is the opposite of {a}?", "Name the opposite of {a}.", "Tell me the opposite of {a}.", "Which word is the opposite of {a}?",
         "What word means the opposite of {a}?"),
        ("What is the opposite of {b}?", "Name the opposite of {b}.", "Tell me the opposite of {b}.", "Which word is the opposite of {b}?",
         "What word means the opposite of {b}?"),
    ),
    Relation(
        "planet", tables.PLANETS, "{a} is the {b} planet from the sun.", "The {b} planet from the sun is {a}.",
        ("Which place from the sun does {a} have?", "Counted from the sun, which planet is {a}?",
         "Where does {a} stand, counted from the sun?",
         "Tell me the place of {a} from the sun.", "What is the place of {a} among the planets?"),
        ("Which planet is the {b} from the sun?", "What is the {b} planet from the sun?", "Name the {b} planet from the sun.",
         "Tell me the {b} planet from the sun.", "Which planet comes {b}, counted from the sun?"),
    ),
)  # fmt: skip




def _drafts(seed: int, split: str) -> Iterator[Draft]:
    combos: list[Draft] = []
    for relation in RELATIONS:
        for a, b in relation.pairs:
            for way, templates, answer in (("b", relation.asks_b, relation.says_b), ("a", relation.asks_a, relation.says_a)):
                item = f"facts/{relation.name}/{a}/{way}"
                held = held_templates(item, len(templates), 1)
                for t, template in enumerate(templates):
                    text, said = template.format(a=a, b=b), answer.format(a=a, b=b)
                    text, said = (s[0].upper() + s[1:] for s in (text, said))
                    combos.append(Draft(keys=(f"{item}/{t}",), held=t in held, messages=ask(text, said), meta={"kind": relation.name}))
    yield from order(combos, seed, f"facts/{split}")


def _statements(seed: int) -> Iterator[str]:
    """Five facts a text, each said in one of its two sentences; every fact comes once before any comes twice."""
    facts = [(r, a, b) for r in RELATIONS for a, b in r.pairs]
    lines: list[str] = []
    for epoch in count():
        for k, (relation, a, b) in enumerate(order(facts, seed, f"facts/text/{epoch}")):
            sentence = Dice(seed, f"facts/way/{epoch}", k).pick("way", (relation.says_b, relation.says_a)).format(a=a, b=b)
            lines.append(sentence[0].upper() + sentence[1:])
            if len(lines) == 5:
                yield " ".join(lines)
                lines = []


SKILLS = (Skill(name="facts", drafts=_drafts, statements=_statements, train=1500, test=240, pretrain=1500),)
