"""Which weights move by which rule, at which rate. Knows a model's named parameters and the rules; no data, no loss."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from cairn.errors import UserError, did_you_mean
from cairn.model.mup import Scale
from cairn.train import blocks
from cairn.train.adamw import AdamW, OnePassAdamW
from cairn.train.config import GroupConfig, OptimizerConfig
from cairn.train.muon import Muon, Spread
from cairn.train.native import adamw as native
from cairn.train.rounding import Draws


def is_block_matrix(name: str, tensor: Tensor, embeddings: set[str]) -> bool:
    """Whether Muon moves this weight: a matrix inside a block, neither embedding nor head (Jordan et al. 2024)."""
    return tensor.ndim == 2 and name not in embeddings


def embedding_names(model: Any) -> tuple[str | None, str | None]:
    """Names of the input embedding and of the output head; the same where they are tied."""
    names = {id(p): name for name, p in model.named_parameters()}
    # A reward model's head is `score`.
    layers = (model.get_input_embeddings(), model.get_output_embeddings() or getattr(model, "score", None))
    found = [names.get(id(layer.weight)) if layer is not None else None for layer in layers]
    return found[0], found[1]


def group_of(name: str, groups: list[GroupConfig]) -> GroupConfig | None:
    """The first group whose pattern fits the name."""
    return next((group for group in groups if fnmatchcase(name, group.match)), None)


def check_groups(groups: list[GroupConfig], names: list[str]) -> None:
    """Refuse a group that no weight would go by.

    Raises:
        UserError: a pattern fits no name, or only names that earlier patterns took.
    """
    taken = {id(group_of(name, groups)) for name in names}
    for number, group in enumerate(groups):
        if id(group) in taken:
            continue
        where = f"optimizer.groups.{number}.match"
        if any(fnmatchcase(name, group.match) for name in names):
            what = f"every weight that '{group.match}' fits goes by an earlier group"
            raise UserError(what, where=where, remedy="put the narrower pattern first")
        # Layers differ by their number alone: one name stands for all of them, and serves as a pattern.
        known = {re.sub(r"\.\d+\.", ".*.", name) for name in names}
        if group.match.startswith("*."):
            # Compared at the length that was given: what the star hides would count as a difference.
            tail = group.match.count(".")
            known = {"*." + ".".join(name.split(".")[-tail:]) for name in known}
        raise UserError(f"no weight's name fits '{group.match}'", where=where, remedy=did_you_mean(group.match, known)[:1200])


class Optimizer:
    """One or two optimisers behind one face; state saved and loaded by weight name.

    Args:
        config: rules and rates.
        named: the weights that move, by name.
        inputs: name of the input embedding, if it moves.
        head: name of the output head; the same where the two are tied.
        seed: of the roundings by chance, for 8-bit states and bf16 weights.
        scales: factors of the rates by name, such as muP's; a weight that is not named has its plain rate.
        spread: where Muon's matrices are, if not whole and all here.
        low: the weights' rounded copies, by name, where our own kernel may move them in the same pass.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        named: dict[str, Tensor],
        inputs: str | None,
        head: str | None,
        seed: int = 0,
        scales: Mapping[str, Scale] | None = None,
        spread: Spread | None = None,
        low: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_groups(config.groups, list(named))
        self.config = config
        self._named, self._names = named, {id(p): name for name, p in named.items()}
        self._draws = Draws(seed, named)
        self._coded = config.state == "int8"
        embeddings = {name for name in (inputs, head) if name}
        apart = inputs if inputs != head else None
        adam: dict[tuple[float, float], list[Tensor]] = {}
        muon: dict[tuple[float, float], list[Tensor]] = {}
        for name, p in named.items():
            by_muon = config.kind == "muon" and is_block_matrix(name, p, embeddings)
            rates = scaled(_rates(config, name, p, by_muon, name == apart), (scales or {}).get(name, Scale()), by_muon)
            (muon if by_muon else adam).setdefault(rates, []).append(p)
        self._parts: list[torch.optim.Optimizer] = []
        if adam:
            self._parts.append(self._adamw(_groups(adam), low))
        if muon:
            self._parts.append(Muon(_groups(muon), config.momentum, self._draws, coded=self._coded, spread=spread))

    def _adamw(self, groups: list[dict[str, Any]], low: Mapping[str, Tensor] | None) -> torch.optim.Optimizer:
        """torch's own, which is fused, where it does what is asked for; with rounded copies our own kernel, to the same bits."""
        config = self.config
        if self._coded or any(p.dtype != torch.float32 for p in self._named.values()):
            return AdamW(groups, config.betas, config.eps, self._draws, coded=self._coded)
        if low and not native.missing() and all(t.is_contiguous() for t in (*self._named.values(), *low.values())):
            return OnePassAdamW(groups, config.betas, config.eps, {id(self._named[name]): copy for name, copy in low.items()})
        return torch.optim.AdamW(groups, lr=groups[0]["peak"], betas=config.betas, eps=config.eps, fused=True)

    def step(self, factor: float, number: int, gradients: dict[str, Tensor], shrink: float = 1.0) -> set[str]:
        """One update.

        Args:
            factor: what each peak rate is multiplied with.
            number: the step's, which roundings by chance are a function of.
            gradients: by name; a weight without one stays as it is. They are taken out, and may be overwritten.
            shrink: what they are multiplied with first.

        Returns:
            The names of the weights whose rounded copies are up to date.
        """
        self._draws.step = number
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor
            members = [p for group in part.param_groups for p in group["params"]]
            if isinstance(part, OnePassAdamW):
                part.move({id(p): gradients.pop(name) for p in members if (name := self._names[id(p)]) in gradients}, shrink)
                continue
            for p in members:
                # Its own type: in bf16 a product with `shrink` would be rounded.
                p.grad = gradients.pop(name).to(p.dtype) if (name := self._names[id(p)]) in gradients else None
            if shrink != 1.0:
                torch._foreach_mul_([p.grad for p in members if p.grad is not None], shrink)
            part.step()
            for p in members:
                p.grad = None
        return {name for part in self._parts if isinstance(part, OnePassAdamW) for name in map(self._names.__getitem__, part.moved)}

    def planned_bytes(self, *, coded: bool | None = None) -> int:
        """Memory of the state once every weight has had a gradient; as configured, or with states coded or not."""
        coded = self._coded if coded is None else coded
        total = 0
        for part in self._parts:
            of_adam = not isinstance(part, Muon)
            for group in part.param_groups:
                total += sum((2 if of_adam else 1) * blocks.state_bytes(p, coded) + (4 if of_adam else 0) for p in group["params"])
        return total

    def state(self) -> dict[str, Tensor]:
        """Flat tensors `name/key` → value; safetensors can hold it."""
        flat: dict[str, Tensor] = {}
        for part in self._parts:
            for p, entry in part.state.items():
                for key, value in entry.items():
                    flat[f"{self._names[id(p)]}/{key}"] = value
        return flat

    def load(self, flat: dict[str, Tensor]) -> None:
        """Take over a saved state. Entries of other names are left alone."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for path, value in flat.items():
            name, key = path.rsplit("/", 1)
            by_name.setdefault(name, {})[key] = value.clone()
        for part in self._parts:
            for group in part.param_groups:
                for p in group["params"]:
                    # A weight without a gradient so far has no state, neither saved nor here.
                    part.state.pop(p, None)
                    if entry := by_name.get(self._names[id(p)]):
                        part.state[p] = entry


def _rates(config: OptimizerConfig, name: str, p: Tensor, by_muon: bool, is_embedding: bool) -> tuple[float, float]:
    """(peak rate, decay) of a weight."""
    rate = config.lr if by_muon or config.kind == "adamw" else config.adam_lr
    if is_embedding and config.embedding_lr is not None:
        rate = config.embedding_lr
    decay = config.weight_decay if p.ndim >= 2 else 0.0
    group = group_of(name, config.groups)
    if group is not None:
        rate = rate if group.lr is None else group.lr
        decay = decay if group.weight_decay is None else group.weight_decay
    return rate, decay


def scaled(rates: tuple[float, float], scale: Scale, by_muon: bool) -> tuple[float, float]:
    """(peak rate, decay) times the weight's factor.

    The decay is divided by it, so that rate times decay, the share of a weight that goes in a step, is the same for all factors
    (Wang and Aitchison 2024: that product, not the decay, is what transfers).
    """
    factor = scale.muon if by_muon else scale.adam
    return rates[0] * factor, rates[1] / factor


def _groups(weights: dict[tuple[float, float], list[Tensor]]) -> list[dict[str, Any]]:
    return [{"params": params, "peak": rate, "weight_decay": decay} for (rate, decay), params in weights.items()]
