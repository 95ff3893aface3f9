"""Several checkpoints of one architecture into one, tensor by tensor: memory holds one tensor of each model. Knows safetensors; no chat.

Each method is a function of tensors. Changes are those of a model against the base, τ = θ - θ_base. All is computed in fp32.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cairn.errors import UserError
from cairn.ledger import seeds
from cairn.model.folder import refuse_pickles
from cairn.model.merge_config import MergeConfig
from cairn.model.tensorfile import TYPES, header

BOOKKEEPING = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of a config.json that change no hidden state; which ids are special is the first model's to say."""
NEARLY_PARALLEL = 1e-4
"""The angle in radians below which the sphere is flat, and its formula would divide zero by zero."""
WEIGHTS = "model.safetensors"
Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Source:
    """One of the models.

    Attributes:
        folder: the model's folder, with its config.json.
        weight: how much it counts.
        step: a training checkpoint's folder, whose weights count in place of the folder's own.
    """

    folder: Path
    weight: float = 1.0
    step: Path | None = None

    @property
    def place(self) -> Path:
        """What it is called in an error."""
        return self.step or self.folder

    def files(self) -> list[Path]:
        """Where its weights lie.

        Raises:
            UserError: there are none.
        """
        if self.step is not None:
            if not (self.step / "weights.safetensors").is_file():
                kept = sorted(p.name for p in self.step.parent.glob("step-*")) if self.step.parent.is_dir() else []
                remedy = f"kept: {', '.join(kept)}" if kept else "keep some: checkpoints: {every: STEPS}"
                remedy += "; without a step it is the model at the training's end, of which none is kept"
                raise UserError("no checkpoint of this step was kept", where=str(self.step), remedy=remedy)
            return [self.step / "weights.safetensors"]
        if (self.folder / "adapter_config.json").is_file():
            remedy = "merge it with its base first: cairn merge ADAPTER DIR, or adapter.merge: true"
            raise UserError("this is an adapter, and whole models are merged here", where=str(self.folder), remedy=remedy)
        refuse_pickles(self.folder)
        return sorted(self.folder.glob("*.safetensors"))


class Reader:
    """The tensors of a source, read one at a time. Closed by its context.

    Raises:
        UserError: damaged files.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._stack, self._at = contextlib.ExitStack(), dict[str, Any]()
        self.shapes: Shapes = {}
        types = {name: dtype for dtype, name in TYPES.items()}
        for path in source.files():
            try:
                file = self._stack.enter_context(safe_open(path, "pt"))
                for name in file.keys():  # noqa: SIM118 - no dictionary
                    piece = file.get_slice(name)
                    self._at[name], self.shapes[name] = file, (types[piece.get_dtype()], tuple(piece.get_shape()))
            except (OSError, SafetensorError, KeyError) as error:
                raise UserError(f"cannot read the weights: {error}", where=str(path), remedy="copy the checkpoint again") from error

    def tensor(self, name: str) -> Tensor:
        found: Tensor = self._at[name].get_tensor(name)
        return found

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


# -- what must agree ------------------------------------------------------------------------------------------------------


def check_alike(sources: Sequence[Source]) -> Shapes:
    """See that all are models of one architecture, by their configurations and their tensors' names and shapes.

    Returns:
        type and shape of each tensor of the result: the widest type among the models.

    Raises:
        UserError: two differ.
    """
    first = sources[0]
    for source in sources:
        source.files()
    configs = [_config(source.folder) for source in sources]
    for source, config in zip(sources, configs, strict=True):
        if "quantization_config" in config:
            raise UserError("the weights are quantised, and a mean of them means nothing", where=str(source.folder),
                            remedy="merge the models before they are quantised")
        for key in sorted({*configs[0], *config} - set(BOOKKEEPING)):
            ours, theirs = configs[0].get(key), config.get(key)
            if ours != theirs:
                what = f"the models are built differently: {key} is {_short(ours)} in one and {_short(theirs)} in the other"
                raise UserError(what, where=f"{first.folder} and {source.folder}", remedy="merge models that were tuned from one base")
    with Reader(first) as reader:
        found = reader.shapes
    for source in sources[1:]:
        with Reader(source) as reader:
            shapes = reader.shapes
        where = f"{first.place} and {source.place}"
        if strange := sorted({*found} ^ {*shapes}):
            what = f"{len(strange)} weights are in one model only, such as '{strange[0]}'"
            raise UserError(what, where=where, remedy="merge models that were tuned from one base")
        for name, (dtype, shape) in shapes.items():
            if shape != found[name][1]:
                what = f"the weight '{name}' has the shape {found[name][1]} in one model and {shape} in the other"
                raise UserError(what, where=where, remedy="merge models that were tuned from one base")
            found[name] = (torch.promote_types(dtype, found[name][0]), shape)
    return found


def _config(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the model's configuration: {error}", where=str(folder), remedy="give a whole model folder") from error
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- methods --------------------------------------------------------------------------------------------------------------


def merge_tensors(
    config: MergeConfig, models: Sequence[Tensor], weights: Sequence[float], base: Tensor | None = None, *, seed: int = 0, name: str = ""
) -> Tensor:
    """One tensor of the merged model, in fp32.

    Args:
        config: the method.
        models: the tensor of each model, equally shaped.
        weights: how much each counts.
        base: that of the base.
        seed: of the places that dare drops, which are a function of (seed, tensor's name, number of the model).
        name: the tensor's name.
    """
    thetas = [theta.float() for theta in models]
    if config.method == "linear":
        return linear(thetas, weights)
    if config.method == "slerp":
        share = weights[1] / (weights[0] + weights[1])
        if base is None:
            return slerp(thetas[0], thetas[1], share)
        return base.float() + slerp(thetas[0] - base.float(), thetas[1] - base.float(), share)
    assert base is not None, "check_models has asked for it"
    changes = [theta - base.float() for theta in thetas]
    density = config.density if config.density is not None else 0.2
    scale = config.scale if config.scale is not None else 0.5 if config.method == "liti" else 1.0
    if config.method in ("dare", "dare_ties"):
        changes = [dropped(change, density, seeds.seed(seed, f"dare/{name}", i)) for i, change in enumerate(changes)]
    elif config.method == "ties":
        changes = [trimmed(change, density) for change in changes]
    if config.method in ("ties", "dare_ties"):
        return base.float() + scale * agreed(changes, weights)
    total = torch.zeros_like(changes[0])
    for change, weight in zip(changes, weights, strict=True):
        total += weight * change
    return base.float() + scale * total


def linear(thetas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w θ / Σ w: model soups (Wortsman et al. 2022), and averages of one run's checkpoints (LAWA, Kaddour 2022)."""
    total = torch.zeros_like(thetas[0])
    for theta, weight in zip(thetas, weights, strict=True):
        total += (weight / math.fsum(weights)) * theta
    return total


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a to b along the arc between their directions (Shoemake 1985), the whole tensor as one vector; a straight line where they are
    parallel, or one is zero. Of changes against a base it is the second step of WARP (Ramé et al. 2024), as Gemma 2 took it."""
    lengths = a.double().norm() * b.double().norm()
    if not lengths:
        return torch.lerp(a, b, share)
    angle = math.acos(max(-1.0, min(1.0, float((a.double() * b.double()).sum() / lengths))))
    if angle < NEARLY_PARALLEL or math.pi - angle < NEARLY_PARALLEL:
        return torch.lerp(a, b, share)
    return (math.sin((1.0 - share) * angle) / math.sin(angle)) * a + (math.sin(share * angle) / math.sin(angle)) * b


def trimmed(change: Tensor, density: float) -> Tensor:
    """A change's largest values, `density` of them, and zero elsewhere (the first step of TIES, Yadav et al. 2023)."""
    count = change.numel()
    keep = max(1, round(density * count))
    least = change.abs().flatten().kthvalue(count - keep + 1).values
    return torch.where(change.abs() >= least, change, 0.0)


def dropped(change: Tensor, density: float, seed: int) -> Tensor:
    """A change of which each value stays with probability `density` and is then divided by it: the mean stays (DARE, Yu et al. 2023)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(change.shape, generator=generator) < density, change / density, 0.0)


def agreed(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Each place's weighted mean over the changes that have the sign of the heavier side there (the other steps of TIES)."""
    sign = torch.zeros_like(changes[0])
    for change, weight in zip(changes, weights, strict=True):
        sign += weight * change
    sign = torch.where(sign >= 0, 1.0, -1.0)
    total, share = torch.zeros_like(changes[0]), torch.zeros_like(changes[0])
    for change, weight in zip(changes, weights, strict=True):
        same = change * sign > 0
        total += torch.where(same, weight * change, 0.0)
        share += weight * same
    return torch.where(share > 0, total / share, 0.0)


# -- files ----------------------------------------------------------------------------------------------------------------


def merge_models(
    config: MergeConfig, sources: Sequence[Source], base: Source | None, folder: Path, seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the merged weights, the first model's configuration and its generation settings into `folder`.

    Args:
        config: the method.
        sources: the models.
        base: what they were tuned from, for the methods that ask for it.
        folder: a new or empty folder.
        seed: of what is drawn.
        on_progress: told (parameters done, all).

    Returns:
        Figures: tensors, parameters.

    Raises:
        UserError: models that do not fit together, or a result that is not finite.
    """
    shapes = check_alike([*sources, *([base] if base is not None else [])])
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(math.prod(shape) for _, shape in shapes.values())
    weights = [source.weight for source in sources]
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Reader(source)) for source in sources]
        below = stack.enter_context(Reader(base)) if base is not None else None

        def tensors(order: Sequence[str]) -> Iterator[Tensor]:
            done = 0
            for name in order:
                dtype, shape = shapes[name]
                models, old = [reader.tensor(name) for reader in readers], below.tensor(name) if below is not None else None
                if dtype.is_floating_point:
                    yield _finite(merge_tensors(config, models, weights, old, seed=seed, name=name).to(dtype), name, folder)
                else:
                    # Counters and tables of positions: no numbers that a mean makes sense of.
                    yield _equal([*models, *([old] if old is not None else [])], name, folder)
                done += math.prod(shape)
                on_progress(done, total)

        _write(folder / WEIGHTS, shapes, tensors)
    told = _config(sources[0].folder)
    floats = [dtype for dtype, _ in shapes.values() if dtype.is_floating_point]
    for key in {"dtype", "torch_dtype"} & set(told):
        told[key] = str(max(floats, key=lambda dtype: dtype.itemsize)).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if (sources[0].folder / "generation_config.json").is_file():
        shutil.copyfile(sources[0].folder / "generation_config.json", folder / "generation_config.json")
    return {"tensors": len(shapes), "parameters": total}


def _finite(tensor: Tensor, name: str, folder: Path) -> Tensor:
    if not torch.isfinite(tensor).all():
        remedy = "look for the model whose weights are not finite, or lower scale"
        raise UserError(f"the merged weight '{name}' has values that are not finite", where=str(folder), remedy=remedy)
    return tensor


def _equal(tensors: Sequence[Tensor], name: str, folder: Path) -> Tensor:
    if any(not torch.equal(tensors[0], other) for other in tensors[1:]):
        raise UserError(f"'{name}' holds whole numbers, and they differ between the models", where=str(folder),
                        remedy="merge models that were tuned from one base")
    return tensors[0]


def _write(path: Path, shapes: Shapes, tensors: Callable[[Sequence[str]], Iterator[Tensor]]) -> None:
    """A safetensors file, of which one tensor at a time is in memory."""
    head, order = header(shapes, {"format": "pt"})
    with open(path, "wb") as file:
        file.write(head)
        for tensor in tensors(order):
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
