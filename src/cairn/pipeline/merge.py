"""An adapter and its base, or several models, as one model folder. Knows references and folders; the merging itself is the model room's.

The folder is written aside and renamed once it is whole, and an adapter's logits were compared: a merge that fails leaves nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.config import build
from cairn.errors import UserError
from cairn.ledger.store import Store, sync_folder, sync_tree
from cairn.model.merge_config import MergeConfig
from cairn.pipeline.companions import give_tokenizer
from cairn.pipeline.export import check_target
from cairn.pipeline.resolve import locate, model_folder


@dataclass(frozen=True)
class Merge:
    """What was merged."""

    folder: Path
    """Where to."""
    adapter: Path
    base: Path
    difference: float
    """Largest difference of a logit from the adapter's on its base, as a share of the largest logit."""

    def json(self) -> dict[str, Any]:
        """As JSON-like values."""
        return {"folder": str(self.folder), "adapter": str(self.adapter), "base": str(self.base), "difference": self.difference}


def merge(ref: str, folder: Path, base: str | None, store: Store) -> Merge:
    """Merge the adapter that `ref` names into its base and write the model into `folder`; it appears whole or not at all.

    Args:
        ref: a train artifact with an adapter, or an adapter folder of peft's layout.
        folder: a new or an empty folder.
        base: the base, for an adapter that does not lie in the artifact of its training.
        store: where artifacts lie.

    Raises:
        UserError: no adapter, no base or another one, a merge whose logits differ, or a folder that is in use.
    """
    source = _adapter_folder(ref, store)
    target = Path(os.path.abspath(folder.expanduser()))
    check_target(target, source, store)
    # Imported late: what is wrong with the names is told before torch is loaded.
    from cairn.model.adapter import base_of, merge_folder
    from cairn.model.determinism import deterministic

    below = model_folder(base, store) if base is not None else base_of(source)
    deterministic()
    with _aside(target, store) as aside:
        difference = merge_folder(source, below, aside)
        _give_rest(source, below, aside)
    return Merge(target, source, below, difference)


@dataclass(frozen=True)
class Blend:
    """Several models that were merged."""

    folder: Path
    """Where to."""
    models: list[Path]
    base: Path | None
    tensors: int
    parameters: int

    def json(self) -> dict[str, Any]:
        """As JSON-like values."""
        base = str(self.base) if self.base is not None else None
        told = {"tensors": self.tensors, "parameters": self.parameters}
        return {"folder": str(self.folder), "models": [str(model) for model in self.models], "base": base, **told}


def merge_whole(
    refs: Sequence[str], folder: Path, base: str | None, options: Mapping[str, Any], weights: Sequence[float] | None,
    chat_format: str | None, seed: int, store: Store,
) -> Blend:
    """Merge the models that `refs` name and write one into `folder`; it appears whole or not at all.

    Args:
        refs: train artifacts, model folders, or folders of a training's checkpoints.
        folder: a new or an empty folder.
        base: what they were tuned from, for the methods that ask for it.
        options: of `MergeConfig`.
        weights: how much each counts; None: 1.
        chat_format: the result's; None: the one that all agree on.
        seed: of what is drawn.
        store: where artifacts lie.

    Raises:
        UserError: options, models, tokenizers or formats that do not fit together, or a folder that is in use.
    """
    where = "cairn merge"
    config = build(MergeConfig, {key: value for key, value in options.items() if value is not None}, where=where)
    counts = [float(weight) for weight in weights] if weights is not None else [1.0] * len(refs)
    if len(counts) != len(refs):
        what = f"{len(refs)} models have {len(counts)} weight{'s' if len(counts) > 1 else ''}"
        raise UserError(what, where=where, remedy="give --weight once for each model")
    try:
        config.check_models(counts, base=base is not None)
    except ValueError as error:
        raise UserError(str(error), where=where, remedy="`cairn merge --help` shows examples") from None
    if chat_format is not None:
        from cairn.chat.format import check_format

        check_format(chat_format)
    places = [_model_and_step(ref, store) for ref in refs]
    below = _model_and_step(base, store) if base is not None else None
    target = Path(os.path.abspath(folder.expanduser()))
    check_target(target, places[0][0], store)
    # Imported late: what is wrong with the names is told before torch is loaded.
    from cairn.model.merging import Source
    from cairn.pipeline.blend import blend

    sources = [Source(place, weight, step) for (place, step), weight in zip(places, counts, strict=True)]
    with _aside(target, store) as aside:
        figures = blend(config, sources, Source(below[0], 1.0, below[1]) if below is not None else None, chat_format, aside, seed)
    return Blend(target, [source.place for source in sources], below[0] if below is not None else None, **figures)


def _model_and_step(ref: str, store: Store) -> tuple[Path, Path | None]:
    """The model's folder that `ref` names, and the checkpoint's where it names one of a training."""
    place = Path(ref).expanduser()
    if (place / "weights.safetensors").is_file():
        return model_folder(str(place.absolute().parents[1]), store), place.absolute()
    return model_folder(ref, store), None


@contextmanager
def _aside(target: Path, store: Store) -> Iterator[Path]:
    """A folder beside the target that becomes it at the end, or goes if anything fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with store.guard():
            yield aside
            sync_tree(aside)
            os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(target.parent)


def _adapter_folder(ref: str, store: Store) -> Path:
    folder = locate(ref, store)
    for place in (folder / "adapter", folder):
        if (place / "adapter_config.json").is_file():
            return place
    raise UserError("there is no adapter to merge: no adapter_config.json", where=str(folder), remedy="name a train stage that has one")


def _give_rest(adapter: Path, base: Path, target: Path) -> None:
    """Tokenizer, template and format beside the weights: the adapter's own where it has them, else its base's."""
    give_tokenizer(adapter if (adapter / "tokenizer.json").is_file() else base, target)
