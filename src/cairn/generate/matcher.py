"""What a constraint is to the engine: which ids may come next, and whether the answer is complete. Knows no grammar and no text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Matcher(Protocol):
    """The state of one constrained answer. A request names a function that makes one: samples of one prompt have their own."""

    finished: bool
    """The answer is complete: the engine ends it with reason "stop"."""

    def allowed(self, left: int) -> Tensor | None:
        """bool_V of the ids that may come next when `left` tokens remain, this one included; None allows all.

        A mask may be shorter than the model's vocabulary: the ids beyond it are not allowed. It is read before the next call.
        """
        ...

    def accept(self, id: int, left: int) -> bool:
        """Take an id, whether or not `allowed` was asked, when `left` tokens remain, this one included.

        False refuses it: it may not come next, or the answer could not be completed in the tokens behind it. Nothing has changed
        then but that `allowed`, asked with the same `left`, leaves the id out; choose another one. It never leaves none.
        """
        ...

    def forced(self, left: int) -> Sequence[int]:
        """Ids that come next whatever the model says, one behind the other; none where it has a say, or where that is not known.

        They are accepted like any other, one by one, and one may be refused in the last tokens of a budget.
        """
        return ()

    def fork(self) -> Matcher:
        """One more at the same place, for another answer that begins alike."""
        return copy.deepcopy(self)
