"""Where an artifact comes from: its ancestors' records, as a tree and as values. Knows the ledger; knows no stage.

Clock times, and paths outside of the store, are left out: what is written here must be the same bytes when it is made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cairn.ledger.record import Record
from cairn.ledger.refs import replace
from cairn.ledger.store import Artifact, Store


def ancestry(artifacts: Sequence[Artifact], store: Store) -> list[Artifact]:
    """The artifacts and all that they were made of, each once, inputs before what reads them.

    Raises:
        UserError: one of them is not in the store.
    """
    found: dict[str, Artifact] = {}
    for artifact in artifacts:
        found |= {ancestor.key: ancestor for ancestor in store.lineage(artifact)}
    return list(found.values())


def tree_text(artifacts: Sequence[Artifact], store: Store) -> str:
    """The lineage as an indented tree: what stands deeper was read by what stands above it. A branch that was shown is not shown again."""
    known = {artifact.key: artifact for artifact in ancestry(artifacts, store)}
    shown: set[str] = set()

    def lines(artifact: Artifact, depth: str, branch: str, inner: str) -> Iterator[str]:
        record = artifact.record
        again = bool(record.inputs) and record.key in shown
        note = "  (its inputs: see above)" if again else ""
        yield f"{depth}{branch}{record.name} ({record.kind})  key {record.key[:16]}  digest {record.digest[:16]}{note}"
        if again:
            return
        shown.add(record.key)
        below: list[Artifact | str] = [known[source.key] for source in record.inputs.values()]
        below += [f"{place} (file from outside)  content {file.sha256[:16]}" for place, file in record.files.items()]
        for i, child in enumerate(below):
            fork, under = ("└─ ", "   ") if i == len(below) - 1 else ("├─ ", "│  ")
            if isinstance(child, str):
                yield f"{depth}{inner}{fork}{child}"
            else:
                yield from lines(child, depth + inner, fork, under)

    return "\n".join(line for artifact in artifacts for line in lines(artifact, "", "", "")) + "\n"


def timeless(record: Record) -> dict[str, Any]:
    """A record as values, without clock times and without where things lay."""
    config: Any = record.config
    for place, file in record.files.items():
        config = replace(config, _location(config, place), {"content": file.sha256})
    return {
        "name": record.name,
        "kind": record.kind,
        "key": record.key,
        "digest": record.digest,
        "code": record.code,
        "seed": record.seed,
        "config": config,
        "inputs": {name: source.model_dump() for name, source in record.inputs.items()},
        "files": {place: file.sha256 for place, file in record.files.items()},
        "environment": record.environment,
        "metrics": record.metrics,
        "outputs": {path: output.model_dump() for path, output in record.outputs.items()},
    }


def _location(config: Any, place: str) -> tuple[str | int, ...]:
    """A dotted place in a configuration, its parts being keys or the numbers of a list's items."""
    found: list[str | int] = []
    for part in place.split("."):
        step: str | int = int(part) if isinstance(config, list) else part
        config = config[step]
        found.append(step)
    return tuple(found)
