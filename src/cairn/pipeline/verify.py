"""Check an artifact: its bytes against its record, or the whole stage by running it again. Changes nothing in the store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cairn.config import build
from cairn.errors import UserError
from cairn.ledger.compare import explain, first_difference
from cairn.ledger.environment import environment
from cairn.ledger.progress import Progress, Silent
from cairn.ledger.record import RECORD, hash_outputs
from cairn.ledger.refs import locate, replace
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.keys import stage_code
from cairn.pipeline.run import plain
from cairn.pipeline.stage import Context, Stage, find_stage


@dataclass
class Verdict:
    """What a check found."""

    differs: list[dict[str, str]] = field(default_factory=list)
    """Every difference as {path, why}."""
    notes: list[str] = field(default_factory=list)
    """What bears on the verdict without being a difference."""
    files: int = 0
    """How many files were compared."""

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differs

    def json(self) -> dict[str, Any]:
        """As JSON-like values."""
        return {"ok": self.ok, "differs": self.differs}


def verify_folder(folder: Path) -> Verdict:
    """Hash every file of an artifact and compare with its record."""
    try:
        artifact = Artifact(folder)
    except UserError as error:
        return Verdict([{"path": RECORD, "why": error.what}])
    verdict = Verdict(artifact.differs(), files=len(artifact.record.outputs) + len(artifact.record.logs))
    if folder.parent.name == "artifacts" and folder.name != artifact.key:
        verdict.differs.append({"path": RECORD, "why": f"the folder's name is not the record's key {artifact.key}"})
    return verdict


def replay(artifact: Artifact, store: Store, *, interval: tuple[int, int] | None = None, progress: Progress | None = None) -> Verdict:
    """Run the stage of an artifact again on the same inputs and compare every output's bytes.

    Args:
        artifact: what to check.
        store: where its inputs lie.
        interval: checkpoints (A, B): run only from one to the other, if the stage can.
        progress: where to tell how far it is.

    Raises:
        UserError: an input is missing or damaged, or a file from outside has changed.
    """
    record = artifact.record
    stage = find_stage(record.kind, str(artifact.path(RECORD)))
    with _temporary(store) as draft:
        context = _context(artifact, stage, store, draft, progress or Silent())
        verdict = Verdict(notes=_notes(artifact, stage))
        try:
            with store.guard():
                if interval is not None:
                    verdict.differs = stage.replay_interval(context, *interval)
                else:
                    metrics = stage.run(context)
        finally:
            context.progress.close()
        verdict.notes += _found_out(record.environment, context.environment)
        if interval is not None:
            return verdict
        again, _ = hash_outputs(draft)
        verdict.files = len(record.outputs)
        for path in sorted({*record.outputs, *again}):
            if path not in again:
                verdict.differs.append({"path": path, "why": "the replay did not write this file"})
            elif path not in record.outputs:
                verdict.differs.append({"path": path, "why": "only the replay wrote this file"})
            elif again[path].sha256 != record.outputs[path].sha256:
                verdict.differs.append({"path": path, "why": explain(artifact.path(path), draft / path)})
        difference = first_difference(record.metrics, plain(metrics or {}))
        if difference:
            why = f"{difference['left']!r} in the record, {difference['right']!r} in the replay"
            verdict.differs.append({"path": f"{RECORD}: metrics.{difference['path']}", "why": why})
    return verdict


def parse_interval(text: str) -> tuple[int, int]:
    """`A:B` as two numbers.

    Raises:
        UserError: it is not of that form, or A is not before B.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UserError("an interval is written A:B, A before B", where=f"--interval {text}", remedy="for example --interval 100:200")
    return int(first), int(last)


@contextmanager
def _temporary(store: Store) -> Iterator[Path]:
    """A folder to replay in: beside the drafts, where there is room, unless the store may not be written."""
    try:
        store.drafts.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="replay-", dir=store.drafts)
    except OSError:
        folder = tempfile.mkdtemp(prefix="cairn-replay-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _context(artifact: Artifact, stage: Stage, store: Store, draft: Path, progress: Progress) -> Context:
    record = artifact.record
    inputs = {}
    for name, source in record.inputs.items():
        found = store.get(source.key)
        if found is None:
            where = str(store.artifacts / source.key)
            remedy = "name the store with --store, or run the recipe again"
            raise UserError(f"the input '{name}' is not in the store", where=where, remedy=remedy)
        differs = found.differs()
        if differs or found.record.digest != source.digest:
            where = str(found.path(differs[0]["path"] if differs else RECORD))
            why = differs[0]["why"] if differs else "it has another digest than the one that was read"
            raise UserError(f"the input '{name}' is damaged: {why}", where=where, remedy="delete its folder and run the recipe again")
        inputs[name] = found
    value: Any = record.config
    for place, file in record.files.items():
        value = _same_file(value, place, file.path, file.sha256, store)
    config = build(stage.config, value, where=f"{artifact.path(RECORD)}, config")
    return Context(
        config=config, seed=record.seed, inputs=inputs, draft=draft, store=store, progress=progress,
        name=record.name, recipe=record.recipe, command=record.command, names=record.names, recorded=artifact,
    )  # fmt: skip


def _same_file(config: Any, place: str, absolute: str, digest: str, store: Store) -> Any:
    """`config`, with the path at `place` made absolute if the file is found only so."""
    location, given = locate(config, place)
    for path in (Path(given), Path(absolute)):
        if path.exists() and store.content_digest(path) == digest:
            return config if str(path) == given else replace(config, location, str(path))
    exists = Path(absolute).exists()
    what = "a file that the stage read has changed since" if exists else "a file that the stage read is gone"
    raise UserError(what, where=absolute, remedy="put it back: only on the same bytes can the stage be replayed")


def _notes(artifact: Artifact, stage: Stage) -> list[str]:
    """What is known before the replay to be other than in the record."""
    notes = _other_environment(artifact.record.environment, environment())
    if stage_code(stage) != artifact.record.code:
        notes.append("the code has changed since the record: this replay runs today's code")
    return notes


def _found_out(recorded: dict[str, Any], added: dict[str, Any]) -> list[str]:
    """What the replayed stage found out about its own environment, where the record says something else."""
    return _other_environment({name: value for name, value in recorded.items() if name in added}, added)


def _other_environment(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    difference = first_difference(recorded, {**recorded, **now})
    if difference is None:
        return []
    return [
        f"the environment differs: {difference['path']} was {difference['left']!r} and is {difference['right']!r}; "
        "equal bytes are promised for the same environment only"
    ]


