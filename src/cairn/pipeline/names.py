"""Artifacts under the names that one recipe gives their stages. Knows records and configurations; runs nothing.

An artifact's record carries the names of the recipe that made it first, and recipes share artifacts. What is printed for a recipe
must show that recipe's names, or its bytes would depend on what else the store has seen.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from cairn.errors import UserError
from cairn.ledger.record import Record
from cairn.ledger.refs import STAGE, marked, replace
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.stage import find_stage


class NamedStore(Store):
    """A store whose artifacts go by the names of one recipe; only its reading methods are meant to be used.

    Args:
        store: the store.
        names: {key: name}; what is not among them keeps the name of its record.
    """

    def __init__(self, store: Store, names: Mapping[str, str]) -> None:
        super().__init__(store.root)
        self.stage_names = dict(names)

    def get(self, key: str) -> Artifact | None:
        """The artifact under `key`, its record renamed, or None."""
        artifact = super().get(key)
        if artifact is not None:
            artifact.record = renamed(artifact.record, self.stage_names)
        return artifact


def renamed(record: Record, names: Mapping[str, str]) -> Record:
    """A record with its own name and those of its inputs replaced, wherever its configuration refers to them.

    Args:
        record: the record; its seal is that of the record as it was.
        names: {key: name}.
    """
    new = {label: names.get(source.key, label) for label, source in record.inputs.items()}
    config = record.config
    try:
        parsed = find_stage(record.kind).config.model_validate(config)
        places = [(place, ref) for place, ref in marked(parsed, STAGE) if ref in new]
    except (UserError, ValidationError):
        places = []  # a kind or a configuration of another version of the code: its words are left as they are
    for place, ref in places:
        config = replace(config, place, new[ref])
    inputs = dict(sorted((new[label], source) for label, source in record.inputs.items()))
    return record.model_copy(update={"name": names.get(record.key, record.name), "inputs": inputs, "config": config})
