"""Several models into one folder that is an ordinary checkpoint: everything that must agree is checked first. Knows no stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.model.merge_config import MergeConfig
from cairn.pipeline.companions import check_formats, check_tokenizers, give_tokenizer

if TYPE_CHECKING:
    from cairn.model.merging import Source

REMEDY = "merge models of one tokenizer: ids that mean different tokens have no mean"


def blend(
    config: MergeConfig, sources: Sequence[Source], base: Source | None, chat_format: str | None, folder: Path, seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Merge the models and put tokenizer and format beside them.

    Args:
        config: the method.
        sources: the models.
        base: what they were tuned from.
        chat_format: the format that the result has; None: the one that all models agree on.
        folder: a new or empty folder.
        seed: of what is drawn.
        on_progress: told (parameters done, all).

    Raises:
        UserError: models, tokenizers or formats that do not fit together; nothing was written then.
    """
    from cairn.model.determinism import deterministic
    from cairn.model.merging import check_alike, merge_models

    every = [*sources, *([base] if base is not None else [])]
    folders = [source.folder for source in every]
    # The tokenizers first: of two tokenizers the shapes often differ too, and the shapes would not tell why.
    check_tokenizers(folders, REMEDY)
    check_alike(every)
    talks = None if chat_format else check_formats(folders)
    deterministic()
    figures = merge_models(config, sources, base, folder, seed, on_progress)
    give_tokenizer(talks or folders[0], folder, chat_format)
    return figures
