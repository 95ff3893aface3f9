"""Something of a process that is on or off for as long as a context lasts. Knows nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Switch:
    """Off, until `held` says otherwise."""

    def __init__(self) -> None:
        self.on = False

    @contextmanager
    def held(self, on: bool) -> Iterator[None]:
        """On, or off, for as long as the context lasts; then as it was."""
        before, self.on = self.on, on
        try:
            yield
        finally:
            self.on = before
