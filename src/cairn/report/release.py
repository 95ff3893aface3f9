"""A release: a folder that loads as a model and carries its card, its evidence and its lineage. Knows the ledger's records.

It is written out of records and files of artifacts alone; no model is loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from cairn.config import Config
from cairn.errors import UserError
from cairn.ledger.digest import file_digest
from cairn.ledger.store import Artifact, Store, write_atomically
from cairn.report.lineage import ancestry, timeless
from cairn.report.plot import draw_curves, read_curve

CURVE = "training-curve.png"
CARD = "README.md"
LINEAGE = "lineage.json"
EVALUATIONS = "evaluations"


class CardInfo(Config):
    """What a card says that no record knows."""

    title: str = ""
    """The model's name; empty: recipe and stage."""
    license: str = "other"
    """The licence of the weights, as Hugging Face writes it (`apache-2.0`, `mit`, `cc-by-4.0`, `other`, …)."""
    languages: list[str] = Field(default_factory=list)
    """Codes of the languages that it is made for (`en`, `ko`, …)."""
    summary: str = ""
    """What it is and for whom, in Markdown."""
    notes: list[str] = Field(default_factory=list)
    """What a reader must know to use it, one paragraph each: how numbers are written, which answers to expect."""
    limits: list[str] = Field(default_factory=list)
    """What it cannot do, one paragraph each."""
    tags: list[str] = Field(default_factory=list)
    """More tags of the metadata."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its artifact and what stands in its results."""

    artifact: Artifact
    results: dict[str, Any]
    label: str = ""
    """Its name where the stage's would not tell it from another one."""

    @property
    def name(self) -> str:
        """The stage's name unless there is a label, and the folder in the release."""
        return self.label or self.artifact.record.name

    def samples(self) -> dict[str, str]:
        """{path in the release: SHA-256 as the results say it}."""
        return {f"{EVALUATIONS}/{self.name}/{row['samples']}": row["samples_sha256"] for row in self.results["rows"]}


@dataclass(frozen=True)
class Material:
    """All that a card is made of."""

    model: Artifact
    """The train artifact that is released."""
    store: Store
    """Where the ancestors are looked up."""
    info: CardInfo = field(default_factory=CardInfo)
    evaluations: list[Evaluation] = field(default_factory=list)
    data: Artifact | None = None
    """The artifact that made the rows and checked that train and test share none."""
    recipe: str = ""
    """Name of the recipe."""
    command: str = ""
    """The command that runs it."""

    @property
    def title(self) -> str:
        """The model's name."""
        return self.info.title or "-".join(part for part in (self.recipe, self.model.record.name) if part)

    @property
    def ref(self) -> str:
        """What a user types for the model."""
        return f"{self.recipe}/{self.model.record.name}" if self.recipe else self.model.key[:12]

    def roots(self) -> list[Artifact]:
        """The artifacts whose lineage is told."""
        return [self.model, *(e.artifact for e in self.evaluations), *([self.data] if self.data else [])]

    def trainings(self) -> list[Artifact]:
        """The trainings that led to the model, the first one first, itself last."""
        return [a for a in ancestry([self.model], self.store) if a.path("metrics.jsonl").is_file()]


def read_evaluation(artifact: Artifact, label: str = "") -> Evaluation:
    """An evaluation out of its artifact; its samples' digests are checked against the record, which is what a reader will rely on.

    Raises:
        UserError: it is no evaluation, or its results name other samples than its record.
    """
    path = artifact.path("results.json")
    if not path.is_file():
        what = f"the artifact '{artifact.record.name}' holds no results"
        raise UserError(what, where=str(artifact.folder), remedy="name an evaluate stage")
    results = json.loads(path.read_text(encoding="utf-8"))
    for row in results["rows"]:
        output = artifact.record.outputs.get(row["samples"])
        if output is None or output.sha256 != row["samples_sha256"]:
            what = f"the results of '{row['suite']}' name samples with another digest than the record"
            raise UserError(what, where=str(artifact.path(row["samples"])), remedy="run the evaluation again")
    return Evaluation(artifact, results, label)


def write_release(folder: Path, material: Material, *, link: bool = True) -> dict[str, Any]:
    """Write the release into `folder`: model files, card, curve, evidence and lineage. What lies there under these names is replaced.

    Args:
        folder: where to.
        material: what of.
        link: give the model's files a second name instead of copying them, where the disk allows; only for folders that nobody edits.

    Returns:
        Figures for the record.

    Raises:
        UserError: the artifact holds no model, or the curve cannot be drawn.
    """
    from cairn.report.card import card_text

    model = material.model.path("model")
    where = str(material.model.folder)
    if not model.is_dir() and material.model.path("adapter").is_dir():
        raise UserError("the adapter was not merged, and a release is one model", where=where, remedy="set adapter.merge: true")
    if not (model / "config.json").is_file():
        raise UserError(f"the artifact '{material.model.record.name}' holds no model", where=where, remedy="name a train stage")
    files = sorted(path.name for path in model.iterdir() if path.is_file())
    for name in files:
        give(model / name, folder / name, link)
    for evaluation in material.evaluations:
        for relative in ("results.json", *dict.fromkeys(row["samples"] for row in evaluation.results["rows"])):
            give(evaluation.artifact.path(relative), folder / EVALUATIONS / evaluation.name / relative, link)
    trainings = material.trainings()
    if trainings:
        draw_curves({a.record.name: read_curve(a.path("metrics.jsonl")) for a in trainings}, folder / CURVE)
    lineage = [timeless(a.record) for a in ancestry(material.roots(), material.store)]
    write_atomically(folder / LINEAGE, json.dumps(lineage, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    write_atomically(folder / CARD, card_text(material))
    numbers = sum(len(e.results["rows"]) for e in material.evaluations)
    return {"model_files": len(files), "results": numbers, "artifacts": len(lineage)}


def give(source: Path, target: Path, link: bool) -> None:
    """Give a file a second name where that is asked for and the disk allows, else copy it. Weights are large."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    if file_digest(source) != file_digest(target):
        raise UserError("a copy has other bytes than its source", where=str(target), remedy="check the disk")
