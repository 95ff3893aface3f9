"""A model out of the store as a folder for other programs. Knows records and file names; loads no model.

Files are copied, never linked: who edits an export must not edit the artifact that it came from. Every copy is read back and
compared with the digest of the record, or of the source where there is no record.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cairn.errors import UserError, did_you_mean
from cairn.ledger.digest import file_digest, folder_files
from cairn.ledger.record import LOGS, RECORD, RESUME
from cairn.ledger.store import Artifact, Store, show_bytes, sync_folder, sync_tree
from cairn.pipeline.resolve import model_folder
from cairn.report.release import EVALUATIONS

_ENDINGS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".md", ".yaml", ".png")
_NAMES = ("LICENSE", "NOTICE", "USE_POLICY")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Export:
    """What was written."""

    folder: Path
    """Where to."""
    source: Path
    """The folder that it was taken from."""
    files: list[dict[str, Any]] = field(default_factory=list)
    """Every file as {path, bytes, sha256}."""
    left_out: list[str] = field(default_factory=list)
    """What lies in the source and belongs to no such folder: pickles, code, other programs' files."""
    template: bool = False
    """Whether it carries a chat template."""

    def json(self) -> dict[str, Any]:
        """As JSON-like values."""
        size = sum(file["bytes"] for file in self.files)
        return {
            "folder": str(self.folder), "source": str(self.source), "bytes": size, "files": self.files,
            "left_out": self.left_out, "template": self.template,
        }  # fmt: skip


def export(ref: str, folder: Path, to: str, store: Store) -> Export:
    """Write the model that `ref` names into `folder`; it appears whole or not at all.

    Args:
        ref: a train artifact, a release, or any folder with a model.
        folder: a new or an empty folder.
        to: the layout, one of `LAYOUTS`.
        store: where artifacts lie.

    Raises:
        UserError: an unknown layout, no model, a damaged artifact, or a folder that is in use.
    """
    if to not in LAYOUTS:
        raise UserError(f"there is no layout '{to}' to export to", where=f"--to {to}", remedy=did_you_mean(to, LAYOUTS))
    source = model_folder(ref, store)
    target = Path(os.path.abspath(folder.expanduser()))
    check_target(target, source, store)
    with store.guard():
        return LAYOUTS[to](source, target)


def check_target(target: Path, source: Path, store: Store) -> None:
    """Refuse a folder that is in use, before anything is written."""
    inside = [place for place in (source, store.root) if target.is_relative_to(place.absolute())]
    if inside:
        what = "the export would lie inside of what it is taken from"
        raise UserError(what, where=str(target), remedy=f"name a folder outside of {inside[0]}")
    if target.exists() and not target.is_dir():
        raise UserError("a file stands where the folder is to be written", where=str(target), remedy="name a new folder")
    if target.is_dir() and (any(target.iterdir()) or target == Path.cwd()):
        what = "the folder is not empty" if any(target.iterdir()) else "this is the folder that you are in"
        raise UserError(what, where=str(target), remedy="name a new folder, or empty this one: nothing is overwritten")


def _hugging_face(source: Path, target: Path) -> Export:
    """Weights, configuration, tokenizer and template, with the card where there is one."""
    digests, left_out = _recorded(source) or _found(source)
    if not any(path.endswith(".safetensors") for path in digests):
        pickled = [name for name in left_out if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        what = f"the weights are pickled ({pickled[0]})" if pickled else "the folder holds no weights (*.safetensors)"
        raise UserError(what, where=str(source), remedy="name a folder with safetensors")
    if not any(name in digests for name in _TOKENIZERS):
        remedy = "put the files of its tokenizer beside the weights"
        raise UserError("the model has no tokenizer with it", where=str(source), remedy=remedy)
    files = _copy(source, target, digests)
    return Export(target, source, files, left_out, _has_template(target))


def _recorded(source: Path) -> tuple[dict[str, str], list[str]] | None:
    """{path: digest} as the record of the artifact around `source` says it; None if there is no record."""
    for folder in (source, source.parent):
        if (folder / RECORD).is_file():
            artifact = Artifact(folder)
            break
    else:
        return None
    start = "" if artifact.folder == source else f"{source.name}/"
    outputs = artifact.record.outputs
    digests = {path.removeprefix(start): output.sha256 for path, output in outputs.items() if path.startswith(start)}
    present = set(folder_files(source, skip={RECORD, LOGS, RESUME}))
    for path in sorted(present ^ set(digests)):
        what = "a file of the artifact is missing" if path in digests else "the artifact holds a file that its record does not know"
        raise UserError(what, where=str(source / path), remedy=f"see what is damaged: cairn verify {artifact.key[:12]}")
    return digests, []


def _found(source: Path) -> tuple[dict[str, str], list[str]]:
    """{path: digest} of what belongs to a model in a folder without a record, and the names that do not."""
    digests: dict[str, str] = {}
    left_out: list[str] = []
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name == EVALUATIONS:
            digests |= {f"{path.name}/{inner}": file_digest(path / inner) for inner in folder_files(path)}
        elif path.is_file() and _belongs(path):
            digests[path.name] = file_digest(path)
        elif not path.name.startswith("."):
            left_out.append(path.name)
    return digests, left_out


def _belongs(path: Path) -> bool:
    if path.name.startswith(".") or path.name.endswith(".bin.index.json"):
        return False
    return path.suffix in _ENDINGS or path.stem in _NAMES


def _copy(source: Path, target: Path, digests: dict[str, str]) -> list[dict[str, Any]]:
    """Copy the files aside, read them back, and put them into place."""
    near = next(folder for folder in target.parents if folder.is_dir())
    need, free = sum((source / path).stat().st_size for path in digests), shutil.disk_usage(near).free
    if need > free:
        what = f"the disk has too little room: {show_bytes(need)} are needed, {show_bytes(free)} are free"
        raise UserError(what, where=str(near), remedy="free some space, or name a folder on another disk")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        for path in digests:
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, aside / path)
        sync_tree(aside)
        for path, digest in digests.items():
            if file_digest(aside / path) != digest:
                _blame(source / path, aside / path, digest)
        os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(target.parent)
    return [{"path": path, "bytes": (target / path).stat().st_size, "sha256": digest} for path, digest in sorted(digests.items())]


def _blame(source: Path, copy: Path, digest: str) -> None:
    if file_digest(source) != digest:
        remedy = "delete the artifact and run the recipe again"
        raise UserError("the file has other bytes than its record says", where=str(source), remedy=remedy)
    raise UserError("a copy has other bytes than its source", where=str(copy), remedy="check the disk, or export to another one")


def _has_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (config.is_file() and b'"chat_template"' in config.read_bytes())


LAYOUTS: dict[str, Callable[[Path, Path], Export]] = {"hf": _hugging_face}
"""What a model can be exported to: hf is the folder that transformers and most servers load."""
