"""Adding and subtracting numbers below 100, written column by column so that a small model can.

The answer takes the ones first, then the tens with the carry or borrow: "7+8=15, 4+3+1=8, so 47+38=85."
Each step then needs two digits and a carry, which is a table of 200 entries; digits are single tokens. Held out are pairs of
two-digit numbers: neither a + b nor b + a of a test pair stands anywhere in training, nor in the texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from cairn.data.pebble.draw import Dice, held_out
from cairn.data.pebble.skill import Draft, Skill, ask

SHARE = 0.15

_PLUS = (
    "What is {a} + {b}?", "What is {a} plus {b}?", "Calculate {a} + {b}.", "{a} + {b} = ?", "How much is {a} + {b}?", "Add {a} and {b}.",
    "Please work out {a} + {b}.", "What is the sum of {a} and {b}?",
)  # fmt: skip
_MINUS = (
    "What is {a} - {b}?", "What is {a} minus {b}?", "Calculate {a} - {b}.", "{a} - {b} = ?", "How much is {a} - {b}?",
    "Take away: {a} - {b}.", "Please work out {a} - {b}.", "What is the difference of {a} and {b}?",
)  # fmt: skip


def key(a: int, sign: str, b: int) -> str:
    """The pair's name: the same for a + b and b + a."""
    return f"{min(a, b)} + {max(a, b)}" if sign == "+" else f"{a} - {b}"


def is_held(a: int, sign: str, b: int) -> bool:
    """Whether this pair belongs to the test. One-digit numbers never do: the columns of other sums show them."""
    return min(a, b) >= 10 and held_out(f"arithmetic/{key(a, sign, b)}", SHARE)


def worked(a: int, sign: str, b: int) -> str:
    """The written-out calculation; `a` ≥ `b` where `sign` is "-"."""
    tens_a, ones_a, tens_b, ones_b = a // 10, a % 10, b // 10, b % 10
    if sign == "+":
        ones = ones_a + ones_b
        carry, total = ones // 10, a + b
        steps = f"{ones_a}+{ones_b}={ones}, {tens_a}+{tens_b}+{carry}={tens_a + tens_b + carry}"
    else:
        borrow, total = int(ones_a < ones_b), a - b
        ones_a += 10 * borrow
        steps = f"{ones_a}-{ones_b}={ones_a - ones_b}, {tens_a}-{tens_b}-{borrow}={tens_a - tens_b - borrow}"
    return f"{steps}, so {a}{sign}{b}={total}."


def drawn(dice: Dice) -> tuple[int, str, int]:
    """The two numbers and the sign of one question; `a` ≥ `b` where the sign is "-"."""
    sign = dice.pick("sign", "+-")
    # Seven in eight have two digits each: there are 8,100 of those and 1,800 others.
    small = dice.chance("small", 0.125)
    a, b = dice.between("a", 0 if small else 10, 99), dice.between("b", 0 if small else 10, 9 if small else 99)
    if (sign == "-" and a < b) or (small and dice.chance("swap", 0.5) and sign == "+"):
        a, b = b, a
    return a, sign, b


def _column(dice: Dice) -> str:
    """One step of a worked sum."""
    a, b, carry, tens = dice.below("a", 10), dice.below("b", 10), dice.below("carry", 2), dice.chance("tens", 0.5)
    if dice.chance("plus", 0.5):
        return f"{a}+{b}+{carry}={a + b + carry}" if tens else f"{a}+{b}={a + b}"
    if tens:
        high, low = max(a, b), min(a, b)
        carry = min(carry, high - low)
        return f"{high}-{low}-{carry}={high - low - carry}"
    a += 10 if a < b else 0
    return f"{a}-{b}={a - b}"


def _drafts(seed: int, split: str) -> Iterator[Draft]:
    for index in count():
        dice = Dice(seed, f"arithmetic/{split}", index)
        a, sign, b = drawn(dice)
        question = dice.pick("template", _PLUS if sign == "+" else _MINUS).format(a=a, b=b)
        held = is_held(a, sign, b)
        yield Draft(
            keys=(f"arithmetic/{key(a, sign, b)}",),
            held=held,
            messages=ask(question, worked(a, sign, b)),
            expected=a + b if sign == "+" else a - b,
            meta={"kind": "addition" if sign == "+" else "subtraction"},
        )


def _statements(seed: int) -> Iterator[str]:
    """Four worked sums, or eight columns of such sums, by turns."""
    for index in count():
        if index % 3 == 2:
            yield ", ".join(_column(Dice(seed, f"arithmetic/column/{k}", index)) for k in range(8))
            continue
        lines: list[str] = []
        for k in count():
            a, sign, b = drawn(Dice(seed, f"arithmetic/text/{k}", index))
            if not is_held(a, sign, b):
                lines.append(f"{a} {sign} {b} = ? {worked(a, sign, b)}")
            if len(lines) == 4:
                break
        yield "\n".join(lines)


SKILLS = (Skill(name="arithmetic", drafts=_drafts, statements=_statements, train=6000, test=400, pretrain=2400),)
