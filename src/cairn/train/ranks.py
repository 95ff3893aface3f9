"""The processes that train one model together: who they are, which documents are whose, and what they exchange. Knows no model.

Ranks change nothing but rounding: every rank reads the same step's batch, takes its share by a pure function of the documents'
lengths, and the sums over ranks are those of the whole batch. Ranks on one machine's CPU exchange through shared memory, which
was a hundred times as fast as loopback sockets (docs/experiments.md); others through torch.distributed (gloo, NCCL).
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.train.pulse import Pulse

DEADLINE = timedelta(days=1)
"""Time-out of a collective. The pulse decides long before; torch's own would end a run while rank 0 writes a large checkpoint."""


@dataclass(frozen=True)
class Place:
    """Where a process stands, as torchrun's variables tell it."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @staticmethod
    def of_environment() -> Place:
        """From RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE; alone where they are not set.

        Raises:
            UserError: they contradict each other.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return Place()
        try:
            rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            local = Place(rank, world, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", world)))
        except ValueError:
            values = {name: os.environ.get(name) for name in names}
            what = f"the variables of the launcher are no numbers: {values}"
            raise UserError(what, remedy="start with torchrun, or with --ranks") from None
        if not 0 <= rank < world:
            raise UserError(f"RANK is {rank} and WORLD_SIZE {world}", remedy="start with torchrun, or unset both")
        return local


class Ranks:
    """One rank's view of the group. `ALONE` is a group of one, in which every method is free of cost.

    Args:
        place: which one this is.
        device: where it computes.
        pulse: whether the others live.
        threads: of this rank's computation; None for as many as a process takes on its own.
    """

    def __init__(self, place: Place, device: str = "cpu", pulse: Pulse | None = None, threads: int | None = None) -> None:
        self.place, self.device, self.pulse, self.threads = place, device, pulse, threads
        self.rank, self.world = place.rank, place.world
        self._shared: _SharedMemory | None = None

    @staticmethod
    def join(place: Place, store: Any, device: str, pulse: Pulse | None = None, threads: int | None = None) -> Ranks:
        """Form the process group over a key-value store; returns when all ranks are there."""
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=DEADLINE)
        return Ranks(place, device, pulse, threads)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes."""
        return self.rank == 0

    # -- what is whose ----------------------------------------------------------------------------------------------

    def share(self, batch: Any, capacity: int, *, even: bool = False) -> tuple[list[Any], list[Any]]:
        """(this rank's passes over its documents of a step's batch, idle passes that count for nothing).

        Args:
            batch: the whole step's.
            capacity: most tokens of a pass.
            even: all ranks make as many passes, idle ones if need be: with sharded weights every pass is a collective.
        """
        if self.world == 1:
            return batch.split(capacity), []
        shares = [part.split(capacity) if part is not None else [] for part in batch.divide(self.world)]
        own = shares[self.rank]
        return own, [batch.idle()] * (max(map(len, shares)) - len(own)) if even else []

    # -- exchange ---------------------------------------------------------------------------------------------------

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, the same on each."""
        if self.world == 1:
            return list(values)
        import torch.distributed as dist

        self._mark()
        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def agree(self, value: Any) -> Any:
        """Rank 0's value (JSON-like), on every rank."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        self._mark()
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        self._mark()
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.total([0.0])

    def add_gradients(self, named: dict[str, Tensor], gradients: dict[str, Tensor], more: Sequence[float]) -> list[float]:
        """Replace every gradient of the weights `named` by its sum over the ranks; gives the sums of `more` too.

        A weight that no rank has a gradient of keeps none: the optimiser leaves it alone, as it does in one process.
        """
        if self.world == 1:
            return list(more)
        tensors, own = list(named.values()), [gradients.get(name) for name in named]
        if self.device == "cpu" and self.place.local_world == self.world:
            if self._shared is None:
                self._shared = _SharedMemory(self, sum(t.numel() for t in tensors))
            present = self._shared.add(own, [t.numel() for t in tensors])
            sums = self.total([*more, *present])
            added = self._shared.sums([tuple(t.shape) for t in tensors])
        else:
            import torch.distributed as dist

            flat = torch.cat([(torch.zeros_like(t) if g is None else g).reshape(-1).float() for t, g in zip(tensors, own, strict=True)])
            sums = self.total([*more, *(float(g is not None) for g in own)])
            dist.all_reduce(flat)
            added = [a.view(t.shape) for a, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]
        for (name, tensor), grad, summed, count in zip(named.items(), own, added, sums[len(more) :], strict=True):
            if not count:
                gradients.pop(name, None)
            elif grad is None or grad.dtype != tensor.dtype:
                gradients[name] = summed.to(tensor.dtype, copy=True)
            else:
                grad.copy_(summed)
        if self._shared is not None:
            self._shared.release()
        return sums[: len(more)]

    def gather_rows(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """Rank r's `counts[r]` first rows, one rank after the other, on every rank."""
        if self.world == 1:
            return own
        if self._shared is not None:
            return self._shared.gather(own, counts)
        import torch.distributed as dist

        self._mark()
        most = max(counts)
        padded = own if own.shape[0] == most else torch.cat([own, own.new_zeros(most - own.shape[0], *own.shape[1:])])
        out = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(out, padded.contiguous())
        return torch.cat([piece[:n] for piece, n in zip(out, counts, strict=True)])

    def stepped(self) -> None:
        """A whole step is done."""
        if self.pulse is not None:
            self.pulse.steps += 1

    def busy(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the others wait without taking this rank for lost."""
        return self.pulse.busy() if self.pulse is not None else contextlib.nullcontext()

    def _mark(self) -> None:
        if self.pulse is not None:
            self.pulse.mark()

    @contextlib.contextmanager
    def closing(self) -> Iterator[Ranks]:
        """The group while the block runs. Where a rank fails, every rank raises its reason.

        Raises:
            UserError: what another rank stopped with.
            Lost: another rank went away.
        """
        try:
            yield self
        except Exception as error:
            if self.pulse is None:
                raise
            reason = self.pulse.fail(error)
            if reason.rank == self.rank or (isinstance(error, UserError) and self.first):
                raise
            raise reason.error() from error
        else:
            if self.world > 1:
                import torch.distributed as dist

                # Only a group that is whole is taken down in order; after a failure that would wait for who never comes.
                self.barrier()
                dist.destroy_process_group()
        finally:
            if self.pulse is not None:
                self.pulse.close()


ALONE = Ranks(Place())
"""One process on the processor."""


def alone() -> Ranks:
    """One process on the device that this machine trains on: its first GPU where torch sees one, the processor elsewhere."""
    return Ranks(Place(), "cuda:0") if torch.cuda.is_available() else ALONE


class _SharedMemory:
    """One slab of fp32 a rank and one for sums, in memory that all ranks of this machine see.

    Rank r adds up the r-th stretch of all slabs, in the order of the ranks, so the sums are the same bits everywhere.
    """

    def __init__(self, ranks: Ranks, floats: int) -> None:
        self.ranks, self.floats = ranks, floats
        size = (ranks.world + 1) * floats
        name = ranks.agree(_room(4 * size) if ranks.first else None)
        self.slabs = torch.from_file(name, shared=True, size=size, dtype=torch.float32).view(ranks.world + 1, floats)
        ranks.barrier()
        if ranks.first:
            # All have it open: without a name it goes with the last of them, however they end.
            os.unlink(name)

    def add(self, grads: Sequence[Tensor | None], sizes: Sequence[int]) -> list[float]:
        """Put this rank's gradients into its slab; gives 1.0 for each that is there and 0.0 for each that is not."""
        for part, grad in zip(self.slabs[self.ranks.rank].split(list(sizes)), grads, strict=True):
            if grad is None:
                part.zero_()
            else:
                part.copy_(grad.reshape(-1))
        return [float(grad is not None) for grad in grads]

    def sums(self, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """After all have put theirs (an exchange lies between): the sums, as views that hold until `release`."""
        rank, world = self.ranks.rank, self.ranks.world
        start, end = self.floats * rank // world, self.floats * (rank + 1) // world
        torch.sum(self.slabs[:world, start:end], 0, out=self.slabs[world, start:end])
        self.ranks.barrier()
        whole, views, at = self.slabs[world], [], 0
        for shape in shapes:
            count = math.prod(shape)
            views.append(whole[at : at + count].view(shape))
            at += count
        return views

    def release(self) -> None:
        """The views of `sums` were read."""
        self.ranks.barrier()

    def gather(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """As `Ranks.gather_rows`, through the slab of sums. One gather may hold as many numbers as there are weights."""
        shape = (sum(counts), *own.shape[1:])
        whole = self.slabs[-1, : math.prod(shape)].view(shape)
        start = sum(counts[: self.ranks.rank])
        whole[start : start + counts[self.ranks.rank]].copy_(own)
        self.ranks.barrier()
        out = whole.to(own.dtype, copy=True)
        self.ranks.barrier()
        return out


def _room(size: int) -> str:
    """A new file of `size` bytes: in memory where there is room, else in the folder for temporary files."""
    for folder in ("/dev/shm", tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            if Path(folder).is_dir() and free > 2 * size:
                handle, name = tempfile.mkstemp(prefix="cairn-ranks-", dir=folder)
                os.truncate(handle, size)
                os.close(handle)
                return name
    raise UserError(f"the ranks need {size:,} bytes in /dev/shm to exchange gradients", remedy="make room there, or use fewer ranks")
