"""An adapter and its base as one model folder. Knows references and folders; the merging itself is the model room's.

The folder is written aside and renamed once its logits were compared: a merge that fails leaves nothing.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.errors import UserError
from cairn.ledger.store import Store, sync_folder, sync_tree
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
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with store.guard():
            difference = merge_folder(source, below, aside)
            _give_rest(source, below, aside)
            sync_tree(aside)
            os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(target.parent)
    return Merge(target, source, below, difference)


def _adapter_folder(ref: str, store: Store) -> Path:
    folder = locate(ref, store)
    for place in (folder / "adapter", folder):
        if (place / "adapter_config.json").is_file():
            return place
    raise UserError("there is no adapter to merge: no adapter_config.json", where=str(folder), remedy="name a train stage that has one")


def _give_rest(adapter: Path, base: Path, target: Path) -> None:
    """Tokenizer, template and format beside the weights: the adapter's own where it has them, else its base's."""
    give_tokenizer(adapter if (adapter / "tokenizer.json").is_file() else base, target)
