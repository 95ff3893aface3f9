"""Practice in copying, for pretraining alone: values stand in one notation and come back in another.

A call's arguments and an object's values are copied out of the question. Small models learn to copy late when a copied word
is one token in forty; here it is one in three.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count

from cairn.data.pebble.draw import Dice
from cairn.data.pebble.skill import Skill
from cairn.data.pebble.tools import FUNCTIONS, Parameter


def _fields() -> dict[str, Parameter]:
    """Every parameter of every function, by its name; of one name the last."""
    return {name: parameter for function in FUNCTIONS for name, parameter in function.parameters.items()}


def _statements(seed: int) -> Iterator[str]:
    """By turns: a record and its object with the keys in another order; values in a row, and the same values as a list."""
    fields = _fields()
    for index in count():
        dice = Dice(seed, "copying", index)
        names = dice.some("names", list(fields), dice.between("n", 3, 5))
        values = {name: dice.pick(f"value/{name}", fields[name].values) for name in names}
        if index % 2:
            order = dice.shuffled("order", names)
            yield f"{', '.join(f'{n} {v}' for n, v in values.items())}\n{json.dumps({n: values[n] for n in order})}"
        else:
            row = list(values.values())
            yield f"{' and '.join(str(v) for v in row)}\n{json.dumps(row)}"


SKILLS = (Skill(name="copying", statements=_statements, pretrain=2000),)
