"""Which folders models are loaded from: safetensors only. Knows file names; no torch, so that a plan can ask too."""

from __future__ import annotations

from pathlib import Path

from cairn.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def require_config(folder: Path) -> None:
    """Raise unless `folder` holds a configuration."""
    if not (folder / "config.json").is_file():
        raise UserError("this is no model folder: it has no config.json", where=str(folder), remedy="give one that save_pretrained wrote")


def refuse_pickles(folder: Path) -> None:
    """Raise unless `folder` holds safetensors; name the pickle if that is all there is."""
    require_config(folder)
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"the weights are pickled ({pickles[0]}): loading them could run any code", where=str(folder),
            remedy="convert them to safetensors where you trust them, and give that folder",
        )  # fmt: skip
    raise UserError("the folder holds no weights (*.safetensors)", where=str(folder))
