"""Brings several processes together for the stages that train, and sends them away again. Knows no stage's inside.

Two ways in. `cairn run --ranks N`: this process is rank 0 and starts the others on this machine, for such stages only. `torchrun`: all
ranks are there from the start; those other than 0 wait and take part when rank 0 calls a stage. Either way rank 0 alone writes the
store, and the others follow: rank 0 says over a key-value store which stage it is at, they run the same stage on the same draft.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.errors import UserError
from cairn.ledger.environment import cores, threads

if TYPE_CHECKING:
    from cairn.train.pulse import Pulse, Reason
    from cairn.train.ranks import Place, Ranks

JOIN = timedelta(minutes=10)
"""How long a rank may take to reach the others at the beginning."""
MOST_RANKS = 4
"""Ranks that `--ranks` starts on each core at most."""
PARENT = "CAIRN_RANK_OF"
"""Variable that tells a rank the process which started it."""
LEAVE = 10.0
"""Seconds that rank 0 waits at the end for the others to have gone."""


class Team:
    """The processes of one run.

    Args:
        ranks: what `--ranks` says.
        command: words of the command that a further rank on this machine runs.

    Raises:
        UserError: both torchrun and `--ranks`, more ranks than devices, or fewer than one.
    """

    def __init__(self, ranks: int = 1, command: list[str] | None = None) -> None:
        if ranks < 1:
            raise UserError(f"{ranks} ranks cannot run", where="--ranks", remedy="give 1 or more")
        if ranks > MOST_RANKS * cores():
            # Hundreds of interpreters take a machine's memory, and every other program's with it, before one of them trains.
            what = f"{ranks} ranks on {cores()} cores"
            raise UserError(what, where="--ranks", remedy=f"give one rank a core, {MOST_RANKS * cores()} at most to try things out")
        self.wanted, self.command = ranks, command or []
        _leave_with_parent()
        self.under_launcher = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        if self.under_launcher and ranks > 1:
            raise UserError("a launcher such as torchrun has started this process already", where="--ranks", remedy="leave --ranks out")
        self.place = self._place() if self.under_launcher or ranks > 1 else None
        self._store: Any = None
        self._called = 0
        self._local: _LocalRanks | None = None
        self._ended = False

    @property
    def several(self) -> bool:
        """Whether more than one process trains."""
        return self.place is not None and self.place.world > 1

    @property
    def follows(self) -> bool:
        """Whether this is a rank other than 0."""
        return self.place is not None and self.place.rank > 0

    def _place(self) -> Place:
        from cairn.train.ranks import Place

        if not self.under_launcher:
            return Place(0, self.wanted, 0, self.wanted)
        found = Place.of_environment()
        if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise UserError("MASTER_ADDR and MASTER_PORT are not set", remedy="start with torchrun, or unset RANK and WORLD_SIZE")
        return found

    # -- rank 0 and the others --------------------------------------------------------------------------------------

    def summon(self, logs: Path) -> None:
        """Rank 0, at the start of a stage: start the other ranks of this machine, which import while the data are prepared."""
        if not self.several or self.follows or self.under_launcher or self._local is not None:
            return
        import torch
        import torch.distributed as dist

        assert self.place is not None
        if torch.cuda.is_available() and torch.cuda.device_count() < self.place.world:
            raise UserError(
                f"{self.place.world} ranks need as many devices, this machine has {torch.cuda.device_count()}", where="--ranks",
                remedy=f"give --ranks {torch.cuda.device_count()}",
            )  # fmt: skip
        self._store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False, timeout=JOIN)
        self._local = _LocalRanks(self.command, self.place.world, self._store.port, logs)

    @contextlib.contextmanager
    def together(self, name: str, key: str, draft: Path, end_display: Callable[[], None]) -> Iterator[Ranks]:
        """All ranks, inside a stage whose data are prepared.

        Args:
            name: the stage.
            key: its key, which must be the same on every rank: another recipe or other code would train another model.
            draft: its draft.
            end_display: takes a live display off the screen, before a reason is printed over it.
        """
        from cairn.train.pulse import Pulse
        from cairn.train.ranks import alone

        if not self.several:
            yield alone()
            return
        import torch
        import torch.distributed as dist

        assert self.place is not None
        store = self._key_value_store()
        if not self.follows:
            store.set(f"call/{self._called}", json.dumps({"name": name, "key": key, "draft": str(draft.absolute())}))
        number, self._called = self._called, self._called + 1
        mine = dist.PrefixStore(f"stage/{number}", store)
        before = torch.get_num_threads()
        share = threads() if self.under_launcher else max(1, threads() // self.place.local_world)

        def lost(reason: Reason) -> None:
            end_display()
            if self._local is not None:
                self._local.kill()

        pulse = Pulse(dist.PrefixStore(f"pulse/{number}", store.clone()), self.place.rank, self.place.world, lost)
        if self._local is not None:
            self._local.watch(pulse)
        device = f"cuda:{self.place.local_rank}" if torch.cuda.is_available() else "cpu"
        try:
            with _joined(self.place, mine, device, pulse, share) as ranks:
                yield ranks
        except BaseException:
            if self._local is not None:
                self._local.kill()
            raise
        finally:
            torch.set_num_threads(before)
            if self._local is not None:
                self._dismiss()

    def _key_value_store(self) -> Any:
        if self._store is None:
            from torch.distributed.rendezvous import rendezvous

            assert self.place is not None
            self._store = next(rendezvous("env://", self.place.rank, self.place.world, timeout=JOIN))[0]
        return self._store

    def _dismiss(self) -> None:
        """Rank 0: the ranks that it started are no longer needed."""
        assert self._local is not None
        with contextlib.suppress(Exception):
            self._store.set(f"call/{self._called}", json.dumps({"end": True}))
        self._local.wait()
        self._local, self._store, self._called = None, None, 0

    def close(self) -> None:
        """Rank 0: the run is over, whether it went well or not; under torchrun the others may go."""
        if not self.several or self.follows or not self.under_launcher or self._ended:
            return
        self._ended = True
        assert self.place is not None
        with contextlib.suppress(Exception):
            store = self._key_value_store()
            store.set(f"call/{self._called}", json.dumps({"end": True}))
            # The store may live in this process: it must outlast whoever still reads from it.
            until = time.monotonic() + LEAVE
            while time.monotonic() < until and not store.check([f"left/{r}" for r in range(1, self.place.world)]):
                time.sleep(0.05)

    # -- the others -------------------------------------------------------------------------------------------------

    def calls(self) -> Iterator[dict[str, str]]:
        """A rank other than 0: the stages that rank 0 calls, one after the other, as {name, key, draft}.

        Raises:
            UserError: rank 0 is gone.
        """
        from cairn.errors import Lost

        assert self.place is not None
        store = self._key_value_store()
        while True:
            number = self._called
            try:
                while not store.check([f"call/{number}"]):
                    # Rank 0 may prepare data for hours; asking seldom keeps its processor free for them.
                    time.sleep(0.1)
                said = json.loads(store.get(f"call/{number}"))
                if said.get("end"):
                    store.set(f"left/{self.place.rank}", "")
                    return
            except RuntimeError as error:
                raise Lost("rank 0 is gone", remedy="look at its own message, and run the command again") from error
            yield said


    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """A rank other than 0: a reason that rank 0 has been told is rank 0's to show; this one only ends with its status."""
        from cairn.errors import Lost

        try:
            yield
        except Lost as error:
            if error.what.startswith("rank 0"):
                raise
            raise SystemExit(error.status) from error
        except UserError as error:
            raise SystemExit(error.status) from error


def _leave_with_parent() -> None:
    """In a rank that `--ranks` started: end once rank 0 is gone. Killed before the ranks had met, it left them waiting for it with all
    that they hold."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def look() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=look, name="parent", daemon=True).start()


@contextlib.contextmanager
def _joined(place: Place, store: Any, device: str, pulse: Pulse, threads: int) -> Iterator[Ranks]:
    from cairn.train.ranks import Ranks

    waiting = Ranks(place, device, pulse)
    try:
        ranks = Ranks.join(place, store, device, pulse, threads)
    except Exception as error:
        with waiting.closing():
            raise error
    with ranks.closing():
        yield ranks


class _LocalRanks:
    """The processes of ranks 1 to N - 1 on this machine.

    Args:
        command: words of the command that each runs.
        world: N.
        port: of the key-value store.
        logs: folder for what each prints.
    """

    def __init__(self, command: list[str], world: int, port: int, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs, self._over = logs, threading.Event()
        common = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC")} | {
            "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(max(1, threads() // world)), PARENT: str(os.getpid()),
        }  # fmt: skip
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(1, world):
            with open(self._log(rank), "wb") as log:
                # A session of its own: Ctrl-C reaches rank 0 alone, which ends the others in order.
                self.processes[rank] = subprocess.Popen(
                    command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip

    def _log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.txt"

    def watch(self, pulse: Pulse) -> None:
        """Tell the pulse when a process ends before its time."""

        def look() -> None:
            while not self._over.wait(0.2):
                for rank, process in self.processes.items():
                    status = process.poll()
                    if status is not None:
                        # What it wrote down itself says more than its exit status; it gets a moment to arrive.
                        self._over.wait(1.5)
                        if not self._over.is_set():
                            pulse.tell(self._reason(rank, status))
                        return

        threading.Thread(target=look, name="ranks", daemon=True).start()

    def _reason(self, rank: int, status: int) -> Reason:
        from cairn.train.pulse import Reason

        if status < 0:
            name = signal.Signals(-status).name if -status in signal.valid_signals() else "unknown"
            why = ", as happens when memory runs out" if status == -signal.SIGKILL else ""
            return Reason(rank, f"it was killed by signal {-status} ({name}){why}", str(self._log(rank)))
        lines = self._log(rank).read_text("utf-8", errors="replace").strip().splitlines()[-6:]
        what = f"it ended with status {status}: {' | '.join(lines)[:600]}"
        return Reason(rank, what, str(self._log(rank)), status=2 if status == 2 else 1)

    def kill(self) -> None:
        """End them all at once: a rank that hangs hears nothing else."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def wait(self) -> None:
        """They are told to go; end those that do not."""
        self._over.set()
        until = time.monotonic() + LEAVE
        for process in self.processes.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def command_of(run: Sequence[str], store: Path, until: str | None) -> list[str]:
    """The words that start a further rank of a run, from the recipe's. Its command to show has no paths: no process could read it."""
    words = [sys.executable, "-m", "cairn", *run, "--store", str(store)]
    return words + (["--until", until] if until else [])
