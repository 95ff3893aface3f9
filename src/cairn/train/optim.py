"""Which weights move by which rule. Knows a model's named parameters and torch's optimisers; no data, no loss.

With bf16 compute the model's own weights are bf16 and the optimiser moves fp32 masters, copied back once a step. With fp32 the
masters are the weights themselves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cairn.train.config import OptimizerConfig


class Masters:
    """The fp32 weights that the optimiser moves, and the gradient that it is given.

    Attributes:
        named: name → fp32 tensor, in the model's order, tied weights once.
    """

    def __init__(self, model: Any, compute: torch.dtype) -> None:
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._same = compute == torch.float32
        self.named: dict[str, Tensor] = {n: (p if self._same else p.detach().float().clone()) for n, p in self._live.items()}
        if not self._same:
            # Parameters only: model.to() would round the rotary frequencies too, and positions would drift by whole radians.
            for p in model.parameters():
                p.data = p.data.to(compute)

    def collect(self) -> None:
        """Add the gradient of the micro-batch to the masters', in fp32, and clear it."""
        if self._same:
            return
        for name, live in self._live.items():
            if live.grad is None:
                continue
            master = self.named[name]
            master.grad = live.grad.float() if master.grad is None else master.grad.add_(live.grad)
            live.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the weights that compute."""
        if not self._same:
            for name, live in self._live.items():
                live.copy_(self.named[name])

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over saved masters."""
        for name, tensor in self.named.items():
            tensor.copy_(state[name])
        self.publish()

    def clear(self) -> None:
        for tensor in self.named.values():
            tensor.grad = None


def is_block_matrix(name: str, tensor: Tensor, embeddings: set[str]) -> bool:
    """Whether Muon moves this weight: a matrix inside a block, neither embedding nor head (Jordan et al. 2024)."""
    return tensor.ndim == 2 and name not in embeddings


def embedding_names(model: Any) -> tuple[str | None, str | None]:
    """Names of the input embedding and of the output head; the same where they are tied."""
    names = {id(p): name for name, p in model.named_parameters()}
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    found = [names.get(id(layer.weight)) if layer is not None else None for layer in layers]
    return found[0], found[1]


class Optimizer:
    """One or two torch optimisers behind one face; state saved and loaded by weight name."""

    def __init__(self, config: OptimizerConfig, named: dict[str, Tensor], inputs: str | None, head: str | None) -> None:
        self.config = config
        embeddings = {name for name in (inputs, head) if name}
        matrices = {n: p for n, p in named.items() if is_block_matrix(n, p, embeddings)} if config.kind == "muon" else {}
        apart = inputs if config.embedding_lr is not None and inputs != head else None
        rest = {n: p for n, p in named.items() if n not in matrices and n != apart}
        rate = config.adam_lr if config.kind == "muon" else config.lr
        groups: list[dict[str, Any]] = [
            {"params": [p for p in rest.values() if p.ndim >= 2], "weight_decay": config.weight_decay, "peak": rate},
            {"params": [p for p in rest.values() if p.ndim < 2], "weight_decay": 0.0, "peak": rate},
            {"params": [named[apart]] if apart else [], "weight_decay": config.weight_decay, "peak": config.embedding_lr},
        ]
        groups = [group for group in groups if group["params"]]
        self._parts: list[torch.optim.Optimizer] = []
        if groups:
            self._parts.append(torch.optim.AdamW(groups, lr=rate, betas=config.betas, eps=config.eps, fused=True))
        if matrices:
            self._parts.append(Muon(list(matrices.values()), config.lr, momentum=config.momentum, weight_decay=config.weight_decay))
        self._named = named

    def step(self, factor: float) -> None:
        """One update at `factor` times each peak rate."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor
            part.step()

    def state(self) -> dict[str, Tensor]:
        """Flat tensors `name/key` → value; safetensors can hold it."""
        names = {id(p): n for n, p in self._named.items()}
        flat: dict[str, Tensor] = {}
        for part in self._parts:
            for p, entry in part.state.items():
                for key, value in entry.items():
                    flat[f"{names[id(p)]}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(float(value))
        return flat

    def load(self, flat: dict[str, Tensor]) -> None:
        by_name: dict[str, dict[str, Tensor]] = {}
        for path, value in flat.items():
            name, key = path.rsplit("/", 1)
            by_name.setdefault(name, {})[key] = value.clone()
        for part in self._parts:
            for group in part.param_groups:
                for p in group["params"]:
                    name = next(n for n, q in self._named.items() if q is p)
                    if name in by_name:
                        part.state[p] = by_name[name]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): momentum, then the update's matrix made nearly orthogonal by five Newton-Schulz rounds.

    Matrices of one shape go through the rounds as one batch, which torch's own Muon does one by one (docs/experiments.md). The update
    is scaled by sqrt(max(1, rows / columns)).
    """

    def __init__(self, params: list[Tensor], peak: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": 0.0, "peak": peak, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(p)
            for shape, params in shapes.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    assert p.grad is not None
                    buffer = state["momentum"].lerp_(p.grad, 1.0 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))
                ortho = orthogonalise(torch.stack(updates))
                scale = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for p, update in zip(params, ortho, strict=True):
                    p.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonalise(x_NRC: Tensor, rounds: int = 5) -> Tensor:
    """Each of N matrices with its singular values pushed towards 1, in fp32 out; products run in bf16.

    The quintic coefficients are those of the paper: steep at 0, so small singular values rise fast.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x_NRC.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).float()


def clip_gradients(named: dict[str, Tensor], limit: float) -> float:
    """Scale all gradients so that their common norm is at most `limit` (0: only measure). Returns the norm before."""
    grads = [p.grad for p in named.values() if p.grad is not None]
    total = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])))
    if limit > 0 and total > limit:
        for g in grads:
            g.mul_(limit / (total + 1e-6))
    return total
