"""Whether every rank still lives, and why one stopped. Knows a key-value store and the clock; nothing of training.

Each rank beats once a second from a thread of its own and counts the exchanges that its main thread has entered. Rank 0 looks at
all others, they look at rank 0. A rank is lost when its beat stands still (killed, stopped, its machine gone), or when its main
thread has not come to the exchange that another one waits in for far longer than ever before. The first reason that is written down
counts; a rank whose main thread hangs in a collective, which no exception can reach, is ended by its thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cairn.errors import Lost, UserError

BEAT = 1.0
"""Seconds between two beats."""
STALE = 12.0
"""Seconds without a beat after which a rank is lost."""
STALL = 15.0
"""Least seconds that a rank may be late at an exchange; beyond, five times the longest that one took before."""
FIRST = 600.0
"""Seconds that a rank may be late at the first exchanges: compilers run and caches fill there."""
GRACE = 4.0
"""Seconds that the main thread has to end by itself once a reason is known."""
_REASON = "reason"


@dataclass(frozen=True)
class Reason:
    """Why a rank stopped: its error in parts, and the exit status that it calls for."""

    rank: int
    what: str
    where: str = ""
    remedy: str = ""
    status: int = 1

    @staticmethod
    def of(rank: int, error: BaseException) -> Reason:
        if isinstance(error, UserError):
            return Reason(rank, error.what, error.where, error.remedy, error.status)
        return Reason(rank, f"{type(error).__name__}: {error}".rstrip(": ")[:600])

    def error(self) -> UserError:
        """The exception that says so on another rank."""
        remedy = self.remedy or "run the same command again: it goes on from its latest checkpoint"
        return (UserError if self.status == 2 else Lost)(f"rank {self.rank}: {self.what}", where=self.where, remedy=remedy)


class Pulse:
    """The beats of a group of ranks.

    Args:
        store: a connection to the group's key-value store that nothing else uses.
        rank: this rank.
        world: how many there are.
        on_lost: called once with the reason, from the thread, as soon as one is known.

    Attributes:
        steps: whole steps that the main thread has made; it counts them here.
    """

    def __init__(self, store: Any, rank: int, world: int, on_lost: Callable[[Reason], None] = lambda reason: None) -> None:
        self.store, self.rank, self.world, self.on_lost = store, rank, world, on_lost
        self.reason: Reason | None = None
        self.steps, self._marks, self._busy = 0, 0, 0
        self._longest, self._marked = 0.0, time.monotonic()
        self._known, self._closed = threading.Event(), threading.Event()
        self._heard: dict[int, tuple[str, float]] = {}
        self._late: dict[int, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._beat(0)
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    # -- main thread ------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """The main thread enters an exchange."""
        now = time.monotonic()
        if self.steps:
            self._longest = max(self._longest, now - self._marked)
        self._marks, self._marked = self._marks + 1, now

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Inside, the others wait for as long as it takes: a checkpoint is written."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    def fail(self, error: BaseException) -> Reason:
        """This rank has failed; gives the reason that counts, which may be another rank's."""
        if not isinstance(error, UserError):
            # A collective fails everywhere when one rank goes: the one that went may still be about to say why.
            self._known.wait(3.0)
        return self.tell(Reason.of(self.rank, error))

    def tell(self, reason: Reason) -> Reason:
        """Write a reason down unless there is one; gives the one that counts."""
        if self.reason is None:
            with contextlib.suppress(Exception), self._lock:
                told = self.store.compare_set(_REASON, "", json.dumps(vars(reason)))
                reason = Reason(**json.loads(told))
            self._settle(reason)
        assert self.reason is not None
        return self.reason

    def close(self) -> None:
        """The group's work is over, or this rank is about to end by itself."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(2 * BEAT)

    # -- thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        beats = 0
        while not self._closed.wait(BEAT):
            beats += 1
            try:
                with self._lock:
                    self._beat(beats)
                    found = self._look()
            except Exception:
                if self._closed.is_set():
                    return
                found = Reason(0, "it is gone, and with it the group's key-value store")
            if found is not None:
                self.tell(found)
            if self.reason is not None:
                break
        if self.reason is not None and not self._closed.wait(GRACE):
            self._end()

    def _beat(self, beats: int) -> None:
        self.store.set(f"beat/{self.rank}", f"{beats} {self._marks} {self._busy}")

    def _look(self) -> Reason | None:
        if self.store.check([_REASON]):
            return Reason(**json.loads(self.store.get(_REASON)))
        now = time.monotonic()
        for other in range(1, self.world) if self.rank == 0 else (0,):
            key = f"beat/{other}"
            beat = self.store.get(key).decode() if self.store.check([key]) else ""
            last, since = self._heard.get(other, ("", now))
            if beat != last:
                since = now
            self._heard[other] = (beat, since)
            if now - since > (STALE if beat else FIRST):
                return Reason(other, f"nothing was heard of it for {now - since:.0f} s")
            _, marks, busy = beat.split() if beat else ("", str(self._marks), "0")
            if int(marks) >= self._marks or int(busy):
                self._late.pop(other, None)
                continue
            at, begun = self._late.get(other, (int(marks), now))
            self._late[other] = (int(marks), begun if at == int(marks) else now)
            limit = max(STALL, 5 * self._longest) if self.steps > 1 else FIRST
            if now - self._late[other][1] > limit:
                return Reason(other, f"it hangs: the others have waited for it for {limit:.0f} s")
        return None

    def _settle(self, reason: Reason) -> None:
        if self.reason is None:
            self.reason = reason
            self._known.set()
            self.on_lost(reason)

    def _end(self) -> None:
        """The main thread hangs where no exception reaches it. What is on disk is whole at every instant, so ending here loses nothing."""
        assert self.reason is not None
        error = self.reason.error()
        if self.rank == 0:
            lines = [f"error: {error.what}", f"   at: {error.where}" if error.where else "", f"   do: {error.remedy}"]
            print("\n".join(line for line in lines if line), file=sys.stderr, flush=True)
        os._exit(error.status)
