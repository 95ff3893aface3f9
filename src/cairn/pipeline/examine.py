"""Examine models outside of a recipe: one suite, one or more models, side by side. Knows the store and `evaluate/`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cairn.data.readers import read_rows
from cairn.errors import UserError
from cairn.evaluate.question import Questions, read_question_file, read_questions
from cairn.evaluate.result import Result, side_by_side
from cairn.evaluate.suite import Suite, load_suite
from cairn.ledger.progress import Progress, Silent
from cairn.ledger.store import Artifact, Store
from cairn.pipeline.resolve import locate, model_folder, resolve
from cairn.pipeline.stages.evaluate import count_tokens
from cairn.report.tables import is_share
from cairn.score.intervals import paired_difference

LIKELIHOOD = "likelihood"
"""The name that asks for perplexity and bits per byte instead of a suite of questions."""


def examine(
    refs: Sequence[str],
    suite_name: str,
    store: Store,
    folder: Path,
    *,
    data: str | None = None,
    limit: int | None = None,
    progress: Callable[[str], Progress] = lambda title: Silent(),
) -> dict[str, Any]:
    """Ask every model the same questions.

    Args:
        refs: the models.
        suite_name: a built-in suite, the path of one, or `likelihood`.
        store: where artifacts are looked up.
        folder: where each model's samples go, in a folder of its number.
        data: a file of rows, or a folder or artifact with the suite's files; None: what the models were made from.
        limit: at most this many rows of each file.
        progress: makes the display of a model's progress out of its name.

    Returns:
        `{"models", "rows", "differences"}`: rows as `cairn eval --json` prints them, and per suite how each model after the first
        differs from the first, as (difference, low, high).

    Raises:
        UserError: an unknown model or suite, or no data for it.
    """
    folders = [model_folder(ref, store) for ref in refs]
    suite = None if suite_name == LIKELIHOOD else load_suite(suite_name)
    name, asked = _questions(suite, refs, store, data, limit)
    results: list[list[Result]] = []
    for number, (ref, place) in enumerate(zip(refs, folders, strict=True)):
        display = progress(ref)
        try:
            results.append(_one(suite, name, asked, place, folder / str(number), display))
        finally:
            display.close()
    table = side_by_side(results)
    differences = _differences(folder, results) if suite is not None and len(refs) > 1 else {}
    return {"models": list(refs), "rows": table, "differences": differences}


def _one(suite: Suite | None, name: str, asked: Questions, model: Path, out: Path, display: Progress) -> list[Result]:
    from cairn.evaluate.likelihood import read_likelihood
    from cairn.evaluate.run import run_suite
    from cairn.evaluate.subject import load_subject

    subject = load_subject(model)
    if suite is None:
        return read_likelihood(subject, name, asked.rows, out, on_progress=count_tokens(display, f"tokens of {name}"))
    display.start(len(asked.rows), f"questions of {name}")
    return run_suite(
        subject, suite, asked.rows, out, examples=asked.examples,
        on_progress=lambda done, total, tokens: display.update(done, tokens=tokens),
    )  # fmt: skip


def _questions(suite: Suite | None, refs: Sequence[str], store: Store, data: str | None, limit: int | None) -> tuple[str, Questions]:
    """The rows' name and the rows."""
    file = Path(data).expanduser() if data is not None else None
    if suite is None:
        if file is not None and file.is_file():
            return file.stem, Questions(list(islice(read_rows(file), limit)))
        raise UserError("likelihood is measured on rows of your own", where="--data", remedy="name a file of rows: --data FILE")
    shorter = suite if limit is None else suite.model_copy(update={"limit": min(limit, suite.limit or limit)})
    if file is not None and file.is_file():
        return suite.name, read_question_file(shorter, file)
    if not suite.data:
        raise UserError(f"the suite '{suite.name}' names no data files", where="--data", remedy="name a file of rows: --data FILE")
    place = locate(data, store) if data is not None else _found(suite, refs, store)
    return suite.name, read_questions(shorter, place)


def _found(suite: Suite, refs: Sequence[str], store: Store) -> Path:
    """The folder of the artifact, among what the models were made from, that holds the suite's files."""
    for ref in refs:
        found = resolve(ref, store)
        if not isinstance(found, Artifact):
            continue
        for ancestor in reversed(store.lineage(found)):
            if all(name in ancestor.record.outputs for name in suite.files()):
                return ancestor.folder
    remedy = "name the artifact or folder that holds them: --data recipe/stage"
    what = f"none of the models was made from an artifact with the questions of '{suite.name}'"
    raise UserError(what, where=", ".join(refs), remedy=remedy)


def _differences(folder: Path, results: list[list[Result]]) -> dict[str, list[tuple[float, float, float]]]:
    """For each share of right answers in the table, how each model after the first differs from it."""
    scores: list[dict[str, list[float]]] = []
    for number, of_model in enumerate(results):
        found: dict[str, list[float]] = {}
        for line in (folder / str(number) / of_model[0].samples).read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            found.setdefault(sample["skill"] or "", []).append(sample["score"])
        scores.append(found)
    names = {group: result.suite for group, result in zip(scores[0], filter(lambda one: is_share(one.metric), results[0]), strict=True)}
    return {name: [paired_difference(scores[0][group], other[group]) for other in scores[1:]] for group, name in names.items()}
