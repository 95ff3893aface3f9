"""What is written down about an artifact: how it came about and what it holds. Knows no stage and no store.

The digest of an artifact covers its outputs alone, so that the same outputs have the same digest however long they took.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from cairn.config import Config
from cairn.errors import UserError
from cairn.ledger.digest import file_digest, folder_files, json_digest

RECORD = "record.json"
"""The record's file name in an artifact's folder."""
RESUME = "resume"
"""The folder of a draft that serves resuming only and is removed when the artifact is finished."""
LOGS = "logs"
"""The folder of an artifact whose files are volatile: kept, but neither compared nor part of the digest."""


class Input(Config):
    """One artifact that a stage read."""

    key: str
    """Key of the input artifact."""
    digest: str
    """Digest of its outputs when it was read."""


class File(Config):
    """One file or folder from outside that a stage read."""

    path: str
    """Where it lay, absolute. Informs only: the content is what counts."""
    sha256: str
    """Digest of its content."""


class Output(Config):
    """One file that a stage wrote."""

    sha256: str
    """Digest of its bytes."""
    bytes: int
    """Its size."""


class Record(Config):
    """The record of one artifact."""

    version: Literal[1] = 1
    """Version of this layout."""
    kind: str
    """Kind of the stage."""
    name: str
    """Name of the stage in its recipe."""
    recipe: str = ""
    """Name of the recipe that made it first. Another recipe with an equal stage shares the artifact."""
    command: str = ""
    """The command that made it first."""
    key: str
    """Digest of kind, configuration, inputs, code and seed: what the artifact depends on."""
    config: dict[str, Any]
    """Configuration of the stage, as its recipe gave it with the defaults filled in."""
    inputs: dict[str, Input] = Field(default_factory=dict)
    """Artifacts that it read, by the name of their stage."""
    names: dict[str, str] = Field(default_factory=dict)
    """{key: name} of all that it was made from, as its recipe names them; only where the outputs show names, which are then in the key."""
    files: dict[str, File] = Field(default_factory=dict)
    """Files from outside that it read, by where they stand in the configuration."""
    code: str
    """Digest of the code that made it."""
    environment: dict[str, Any] = Field(default_factory=dict)
    """Versions, processor, threads: where the outputs can be replayed bit for bit."""
    seed: int
    """The recipe's seed."""
    outputs: dict[str, Output]
    """Files by relative path."""
    logs: dict[str, Output] = Field(default_factory=dict)
    """Volatile files, under logs/: hashed against damage, and neither compared nor part of the digest."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Numbers that the stage found; a function of inputs and seed, never of the clock."""
    times: dict[str, Any] = Field(default_factory=dict)
    """Clock times: started and finished (UTC), seconds. Volatile."""
    digest: str
    """Digest of {path: SHA-256} over the outputs: what the artifact is."""
    seal: str = ""
    """Digest of all of the above, so that damage to the record itself is seen."""

    def sealed(self) -> Record:
        """This record with its seal."""
        return self.model_copy(update={"seal": self._seal()})

    def whole(self) -> bool:
        """Whether the seal fits."""
        return self.seal == self._seal()

    def _seal(self) -> str:
        # Left out where it is empty: records from before the field have seals without it.
        return json_digest(self.model_dump(mode="json", exclude={"seal"} if self.names else {"seal", "names"}))


def outputs_digest(outputs: dict[str, Output]) -> str:
    """The digest of an artifact with these outputs."""
    return json_digest({path: output.sha256 for path, output in outputs.items()})


def hash_outputs(folder: Path) -> tuple[dict[str, Output], dict[str, Output]]:
    """Hash what lies in an artifact's folder, save its record and what serves resuming.

    Returns:
        the outputs, and the volatile files under logs/.
    """
    found: dict[str, Output] = {}
    for path in folder_files(folder, skip={RECORD, RESUME}):
        if (folder / path).is_symlink():
            raise UserError("an output is a symbolic link, whose content may change behind the record", where=str(folder / path))
        found[path] = Output(sha256=file_digest(folder / path), bytes=(folder / path).stat().st_size)
    logs = {path: output for path, output in found.items() if path.startswith(f"{LOGS}/")}
    return {path: output for path, output in found.items() if path not in logs}, logs


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        UserError: it is missing, no JSON, or not of the layout.
    """
    remedy = "the artifact is damaged: delete its folder and run the recipe again"
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError("the artifact has no record", where=str(path), remedy=remedy) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        spot = ".".join(str(p) for p in first["loc"])
        where = f"{path}, {spot}" if spot else str(path)
        raise UserError(f"the artifact's record cannot be read: {first['msg']}", where=where, remedy=remedy) from None


def record_text(record: Record) -> str:
    """The record as it is written: JSON with sorted keys, one line an item, for people to read."""
    return json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
