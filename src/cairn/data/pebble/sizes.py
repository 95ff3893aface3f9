"""How many rows the built-in corpus has. Knows the skills' names and defaults, not their rows."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, NonNegativeInt, model_validator

from cairn.config import Config
from cairn.data.pebble.skills import ALL
from cairn.errors import did_you_mean

Part = Literal["train", "test", "pretrain"]


class Sizes(Config):
    """Rows per skill; a skill that is not named has its own default."""

    scale: float = Field(default=1.0, gt=0, le=10)
    """Multiplies every size below and every default (rounded, at least 1 where the size is not 0)."""
    train: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Dialogues to train on, by skill. An upper bound: a skill never repeats a question."""
    test: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Held-out dialogues, by skill. An upper bound as well."""
    pretrain: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Texts to pretrain on, by skill."""

    @model_validator(mode="after")
    def _known(self) -> Sizes:
        for part in (self.train, self.test, self.pretrain):
            for name in part:
                if name not in ALL:
                    raise ValueError(f"no skill '{name}'; {did_you_mean(name, ALL)}")
        return self

    def of(self, skill: str, part: Part) -> int:
        """The number of rows that `skill` has in `part`."""
        given: dict[str, int] = getattr(self, part)
        size = given.get(skill, getattr(ALL[skill], part))
        return max(1, round(size * self.scale)) if size else 0

    def rows(self) -> int:
        """All rows together, at most."""
        return sum(self.of(skill, part) for skill in ALL for part in get_args(Part))
