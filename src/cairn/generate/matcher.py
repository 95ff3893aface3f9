"""What a constraint is to the engine: which ids may come next, and whether the answer is complete. Knows no grammar and no text."""

from __future__ import annotations

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

    def accept(self, id: int) -> bool:
        """Take the id that was chosen, one that `allowed` gave; called once a token.

        False refuses it: with this id the answer could not be completed in the tokens that are left. Nothing has changed then
        but that `allowed`, asked again with the same `left`, leaves the id out; choose another one. It never leaves none.
        """
        ...
