"""Extractors: from the message that a model answered to the message that is scored. Knows no metric and no model.

A change of what an extractor does is a new version: a published number names the extractor's version, and the old number
must not be taken for one made in the new way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cairn.config import Config
from cairn.errors import UserError, did_you_mean

Message = dict[str, Any]


class Extractor(Config):
    """Which extractor, and which version of it the suite was written for."""

    name: str = "message"
    """`message`, `last_line` or `code_block`."""
    version: int = 1
    """Refused where it is not the version at hand."""


def _message(answer: Message) -> Message:
    return answer


def _last_line(answer: Message) -> Message:
    lines = [line for line in (answer.get("content") or "").splitlines() if line.strip()]
    return {**answer, "content": lines[-1] if lines else ""}


_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


def _code_block(answer: Message) -> Message:
    found = _FENCE.search(answer.get("content") or "")
    return {**answer, "content": found[1]} if found else answer


_EXTRACTORS: dict[str, tuple[int, Callable[[Message], Message]]] = {
    "message": (1, _message),  # the answer as parsed
    "last_line": (1, _last_line),  # its last line that is not blank
    "code_block": (1, _code_block),  # its first fenced block, or all of it where there is none
}


def get_extractor(config: Extractor) -> Callable[[Message], Message]:
    """The extractor of that name and version.

    Raises:
        UserError: no such name, or another version.
    """
    if config.name not in _EXTRACTORS:
        raise UserError(f"no extractor is named '{config.name}'", remedy=did_you_mean(config.name, _EXTRACTORS))
    version, function = _EXTRACTORS[config.name]
    if config.version != version:
        raise UserError(
            f"the suite was written for version {config.version} of the extractor '{config.name}', this is version {version}",
            remedy=f"read what changed, then set the version to {version}: numbers made before are not comparable",
        )
    return function
