"""Where an artifact comes from: its ancestors' records, as a tree and as values. Knows the ledger; knows no stage.

What goes into a release (`tree_text`, `timeless`) leaves out clock times and paths outside of the store: it must be the same bytes when it
is made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cairn.ledger.record import Record
from cairn.ledger.refs import locate, replace
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


def tree_value(artifact: Artifact, store: Store) -> dict[str, Any]:
    """The lineage of an artifact as nested values: {"name", "kind", "key", "digest", "seed", "started", "inputs", "files"}.

    An input that was made anew since, or is gone, has a "note"; of one that is gone nothing else is known but key and digest.
    """
    record = artifact.record
    inputs = []
    for label, source in record.inputs.items():
        found = store.get(source.key)
        if found is None:
            inputs.append({"name": label, "kind": None, "key": source.key, "digest": source.digest, "note": "no longer in the store"})
            continue
        branch = {**tree_value(found, store), "name": label}
        if found.record.digest != source.digest:
            branch["note"] = f"made anew since: digest {source.digest[:12]} was read"
        inputs.append(branch)
    files = [{"place": place, "path": file.path, "sha256": file.sha256} for place, file in record.files.items()]
    return {
        "name": record.name, "kind": record.kind, "key": record.key, "digest": record.digest, "seed": record.seed,
        "started": record.times.get("started"), "inputs": inputs, "files": files,
    }  # fmt: skip


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
        config = replace(config, locate(config, place)[0], {"content": file.sha256})
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
