"""Where a model's weights, gradients and optimiser state lie: whole on every rank, or a part on each. Knows ranks and masters.

The loop sees one face. `Whole`: each rank holds everything, gradients are added up once a step. `Shards`: FSDP2 holds a slice of
every weight on each rank and brings a layer together while it computes; the optimiser is given the slices as plain tensors, so that
no rule of optimisation knows of them but Muon, whose matrices come together on one rank each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError
from cairn.model.adapter import adapter_of
from cairn.model.cost import Run
from cairn.model.fused import join_weights
from cairn.model.load import dtype_of
from cairn.model.recompute import blocks_of, dimensions_of, has_sizes
from cairn.train.config import Training, memory_run
from cairn.train.masters import Masters, is_plain
from cairn.train.muon import Spread, orthogonalise
from cairn.train.objectives import Base, Loss
from cairn.train.ranks import Ranks


class Whole:
    """Every rank, or the only one, holds all weights.

    Args:
        model: a causal LM in fp32.
        objective: its loss.
        ranks: the group.
        config: how to train.
    """

    even = False
    """Whether all ranks must make as many passes."""
    total_square: Callable[[float], float] | None = None
    """Gives the squared norm of all gradients from that of this rank's, where ranks hold different parts."""

    def __init__(self, model: Any, objective: Base, ranks: Ranks, config: Training) -> None:
        self.model, self.objective, self.ranks = model, objective, ranks
        self.masters = Masters(model, dtype_of(config.compute), pure=config.pure)
        self.spread: Spread = _Dealt(ranks) if ranks.world > 1 else Spread()

    def loss(self, part: Any) -> Loss:
        """The objective's loss of a micro-batch."""
        return self.objective.loss(self.model, part)

    def measure(self, part: Any) -> Tensor:
        """The objective's number for each answer of a micro-batch, without a gradient."""
        with torch.no_grad():
            return self.objective.measure(self.model, part)

    def join_weights(self) -> None:
        """Lay weights that are multiplied together next to each other."""
        join_weights(self.model)

    def collect(self) -> None:
        """After a backward."""
        self.masters.collect()

    def add_up(self, sums: Sequence[float]) -> list[float]:
        """After a step's last backward: gradients become those of the whole batch; gives `sums` over the ranks."""
        return self.ranks.add_gradients(self.masters.named, self.masters.gradients, sums)

    def publish(self, done: Collection[str] = ()) -> None:
        """After the optimiser, which may have done it for some weights."""
        self.masters.publish(done)
        self.masters.clear()

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masters or optimiser state (`name` or `name/key`), whole. A collective; the result counts on rank 0 only."""
        return tensors

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of whole tensors what this rank holds."""
        return tensors

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shapes of the masters."""
        return {name: tuple(tensor.shape) for name, tensor in self.masters.named.items()}

    def finished(self, weights: dict[str, Tensor]) -> Any:
        """The model with these weights (masters or their average) in fp32, on every rank."""
        for name, p in self.model.named_parameters():
            if name in weights:
                # A copy, for the weights that compute may be the very ones that are moved.
                p.data = weights[name].detach().float().clone()
            elif is_plain(p):
                p.data = p.data.float()
        return self.model.cpu().eval()


class _Dealt(Spread):
    """Whole matrices on every rank, of which each makes its share orthogonal: the work is divided, the result is everywhere."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.world = ranks, ranks.world

    def orthogonalise(self, updates: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        world, n = self.ranks.world, len(updates)
        borders = [n * r // world for r in range(world + 1)]
        own = updates[borders[self.ranks.rank] : borders[self.ranks.rank + 1]]
        done = orthogonalise(torch.stack(own)) if own else updates[0].new_zeros(0, *updates[0].shape)
        return self.ranks.gather_rows(done, [b - a for a, b in itertools.pairwise(borders)])


class Shards:
    """FSDP2: rank r of W holds the r-th of W slices of every weight's rows, in fp32; blocks are brought together one by one.

    The root of FSDP's tree is a module whose forward is the loss, so that embedding, norm and head are whole where the loss uses the
    head's weight, tied or not, and each objective may call the model as it likes.

    Args:
        model, objective, ranks, config: as for `Whole`.
    """

    even = True

    def __init__(self, model: Any, objective: Base, ranks: Ranks, config: Training) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        reasons = {
            "frozen weights, as an adapter's base has,": any(not p.requires_grad for p in model.parameters()),
            "8-bit optimiser states": config.optimizer.state != "float32",
            "weights in bf16 alone": config.pure,
        }
        for what, found in reasons.items():
            if found:
                raise UserError(f"{what} cannot be divided over ranks", where="memory.sharding", remedy="set sharding: replicate")
        self.model, self.ranks = model, ranks
        self.mesh = init_device_mesh(ranks.device.split(":")[0], (ranks.world,))
        # Parts of the input would be rounded too otherwise, rotary angles among them; the model casts what it must.
        policy = MixedPrecisionPolicy(param_dtype=dtype_of(config.compute), reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks_of(model):
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        self.root = _Root(model, objective)
        fully_shard(self.root, mesh=self.mesh, mp_policy=policy)
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                # A sum, not a mean: the loss is already divided by the tokens of the whole step. gloo has no product before a sum.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self.masters = _SliceMasters(model)
        self.spread: Spread = _Gathered(ranks, self.masters)

    def loss(self, part: Any) -> Loss:
        total, loss = self.root(part)
        loss.total = total
        return loss

    def measure(self, part: Any) -> Tensor:
        with torch.no_grad():
            values: Tensor = self.root(part, measure=True)
        return values

    def join_weights(self) -> None:
        """FSDP lays them out."""

    def collect(self) -> None:
        """FSDP adds up in fp32 by itself."""

    def add_up(self, sums: Sequence[float]) -> list[float]:
        self.masters.take()
        return self.ranks.total(sums)

    def total_square(self, own: float) -> float:
        return self.ranks.total([own])[0]

    def publish(self, done: Collection[str] = ()) -> None:
        self.masters.clear()

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        from torch.distributed.tensor import DTensor

        whole = {}
        for name, tensor in tensors.items():
            weight = self.masters.live.get(name) if name in self.masters.live else self.masters.live.get(name.rsplit("/", 1)[0])
            assert weight is not None
            if tensor.shape == weight.to_local().shape:
                sharded = DTensor.from_local(tensor, self.mesh, weight.placements, shape=weight.shape, stride=weight.stride())
                # One at a time: the device holds one whole tensor, and other ranks' hosts none.
                full = sharded.full_tensor()
                whole[name] = full.cpu() if self.ranks.first else full.new_empty(0)
            elif tensor.numel() == 1:
                whole[name] = tensor
            else:
                what = f"the optimiser's state '{name}' does not follow the weight's shape"
                raise UserError(what, where="memory.sharding", remedy="use sharding: replicate with this optimiser")
        return whole

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            weight = self.masters.live.get(name) if name in self.masters.live else self.masters.live.get(name.rsplit("/", 1)[0])
            if weight is None or tensor.shape != weight.shape:
                found[name] = tensor
                continue
            rows = -(-weight.shape[0] // self.ranks.world)
            found[name] = tensor[rows * self.ranks.rank : rows * (self.ranks.rank + 1)].to(weight.to_local().device)
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in self.masters.live.items()}

    def finished(self, weights: dict[str, Tensor]) -> Any:
        """A fresh model object with the whole weights on rank 0; elsewhere one without contents."""
        whole = self.gather(weights)
        with torch.device("meta"):
            fresh = type(self.model)(self.model.config)
        if self.ranks.first:
            fresh.load_state_dict(whole, strict=False, assign=True)
            fresh.tie_weights()
            empty = [name for name, p in fresh.named_parameters() if p.is_meta]
            assert not empty, f"weights without contents: {empty}"
        return fresh.eval()


class _Root(torch.nn.Module):
    """The loss as a module."""

    def __init__(self, model: Any, objective: Base) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, part: Any, measure: bool = False) -> Any:
        if measure:
            return self.objective.measure(self.model, part)
        loss = self.objective.loss(self.model, part)
        # FSDP waits for the backward of the tensors that it sees here.
        return loss.total, loss


class _SliceMasters(Masters):
    """This rank's slices of FSDP's fp32 weights, as plain tensors that share their memory."""

    def __init__(self, model: Any) -> None:
        self.live: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.named = {name: p.to_local().detach() for name, p in self.live.items()}
        self.gradients = {}

    @property
    def low(self) -> dict[str, Tensor]:
        return {}

    def take(self) -> None:
        """The slices' gradients."""
        self.gradients = {name: p.grad.to_local() for name, p in self.live.items() if p.grad is not None}

    def collect(self) -> None:
        self.take()

    def publish(self, done: Collection[str] = ()) -> None:
        """The slices are the weights."""

    def clear(self) -> None:
        self.gradients = {}
        for p in self.live.values():
            p.grad = None


class _Gathered(Spread):
    """Slices of matrices: W at a time, each comes together on one of W ranks, is made orthogonal there, and goes back as slices."""

    def __init__(self, ranks: Ranks, masters: _SliceMasters) -> None:
        self.ranks, self.world = ranks, ranks.world
        self._shapes = {id(masters.named[name]): tuple(weight.shape) for name, weight in masters.live.items()}

    def shape(self, p: Tensor) -> tuple[int, ...]:
        return self._shapes[id(p)]

    def orthogonalise(self, updates: list[Tensor], shape: tuple[int, ...]) -> Tensor:
        import torch.distributed as dist

        world, rows = self.ranks.world, -(-shape[0] // self.ranks.world)
        mine = updates[0].shape[0]
        # Slices are padded to equal rows: the last ranks hold fewer, or none.
        padded = updates[0].new_zeros(-(-len(updates) // world) * world, rows, *shape[1:])
        for i, update in enumerate(updates):
            padded[i, :mine] = update
        out = torch.empty_like(padded)
        for start in range(0, len(padded), world):
            together, back = torch.empty_like(padded[:world]), out[start : start + world]
            dist.all_to_all_single(together, padded[start : start + world])
            matrix = together.flatten(0, 1)[: shape[0]]
            done = torch.zeros_like(together)
            if start + self.ranks.rank < len(updates):
                done.flatten(0, 1)[: shape[0]] = orthogonalise(matrix[None])[0]
            dist.all_to_all_single(back, done)
        return out[: len(updates), :mine]


def lay_out(model: Any, objective: Base, ranks: Ranks, config: Training, how: str) -> Whole | Shards:
    """The face that `how` (replicate or full) asks for; one rank has nothing to divide."""
    kind = Shards if how == "full" and ranks.world > 1 else Whole
    return kind(model, objective, ranks, config)


def fit(config: Training, model: Any, ranks: Ranks, *, fused: bool) -> Run:
    """How the training is laid out in memory on these ranks (`memory_run`).

    Raises:
        UserError: it does not fit into the budget.
    """
    told = config.memory
    if ranks.world == 1 and ranks.device == "cpu" and told.budget_gb is None and told.activation_checkpointing != "layers":
        # Nothing is to be decided, and a family of unusual sizes must train without the calculator.
        return Run(tokens=0, document=0)
    adapter = adapter_of(model)
    if not has_sizes(model.config) and told.budget_gb is None:
        # Blocks without attention, which the calculator does not know: nothing is chosen for them, and no budget asks for figures.
        every = len(blocks_of(model)) if told.activation_checkpointing == "layers" else 0
        return Run(tokens=0, document=0, sharding=told.sharding if told.sharding != "auto" else "replicate", recomputed=every)
    room, kind = _device_bytes(ranks.device), ranks.device.split(":")[0]
    return memory_run(config, dimensions_of(model), ranks=ranks.world, device=kind, device_bytes=room, fused=fused, adapter=adapter)


def _device_bytes(device: str) -> float | None:
    """Memory of a GPU; None for the CPU, whose memory others use too."""
    return float(torch.cuda.get_device_properties(device).total_memory) if device.startswith("cuda") else None
