"""TensorBoard events of a training, for those who have the package. Knows the lines of metrics and speed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cairn.errors import UserError


def require_tensorboard() -> None:
    """Refuse before any long work what could not be written.

    Raises:
        UserError: the package is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UserError(
            "the package tensorboard is not installed", where="watch.tensorboard",
            remedy="pip install 'cairn-llm[tensorboard]', or leave the key out: metrics.jsonl holds the same figures",
        )  # fmt: skip


class Board:
    """Event files in `folder`.

    Args:
        folder: where they lie.
        step: the step that is done already; what an earlier run showed of later ones is taken back.
    """

    def __init__(self, folder: Path, step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, line: dict[str, Any], speed: dict[str, Any]) -> None:
        """One step's figures."""
        for group, found in (("train", line), ("speed", speed), ("objective", line.get("objective", {}))):
            for name, value in found.items():
                if isinstance(value, int | float) and name != "step":
                    self.writer.add_scalar(f"{group}/{name}", value, line["step"])
        for source, found in line.get("sources", {}).items():
            if "loss" in found:
                self.writer.add_scalar(f"loss of {source}", found["loss"], line["step"])

    def close(self) -> None:
        self.writer.close()
