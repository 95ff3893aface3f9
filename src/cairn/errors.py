"""The errors that a user meets. Knows nothing of any room.

Every mistake of the user is a `UserError`: what went wrong, where, and what to do. The command line prints it on one
screen and ends with status 2. Anything else that escapes is our mistake and ends with status 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend.

    Args:
        what: the problem, one sentence.
        where: file, row, field or recipe line, as exact as is known.
        remedy: what to do about it.
    """

    status = 2
    """The exit status of the command that meets it."""

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__("\n".join(part for part in (what, where and f"  at: {where}", remedy and f"  do: {remedy}") if part))


class Lost(UserError):
    """A process or a machine that takes part went away. Nobody's mistake in what was asked for, so its status is 1."""

    status = 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy sentence for a misspelt word: the nearest known words, or all of them."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return "known: " + ", ".join(names) if names else "nothing is known under that name"
