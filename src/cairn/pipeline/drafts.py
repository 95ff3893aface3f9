"""What stages that begin anew do to a draft that a kill left behind. Knows no stage."""

from __future__ import annotations

import shutil
from pathlib import Path


def empty(draft: Path) -> None:
    """Remove all that lies in a draft: a stage that is quick to repeat must not carry half a file of a killed run into its outputs."""
    for path in draft.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
