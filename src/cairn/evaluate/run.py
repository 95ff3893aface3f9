"""Generation suites: ask every question, read the answer, score it, keep the sample. Knows no training and no particular suite.

Answers are generated greedily. A question whose prompt does not fit into the model's context is not asked and counts as wrong. A
sample keeps what the model was given (rendered text and ids), what it gave, and how that was scored: each number can be computed
again from its samples alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cairn.errors import UserError
from cairn.evaluate.ask import Asked, ask, check_dialogue
from cairn.evaluate.extract import get_extractor
from cairn.evaluate.question import prompt_of, question_of
from cairn.evaluate.result import Result, write_samples
from cairn.evaluate.steered import asked_levels, rank_results, shown_levels
from cairn.evaluate.subject import Subject
from cairn.evaluate.suite import Suite
from cairn.score.intervals import wilson
from cairn.score.registry import get_metric

Row = dict[str, Any]


def expected_of(row: Row, source: str = "") -> Any:
    """What the row expects: its meta says so, or else the assistant's turn itself (the calls that it makes, or its text).

    Args:
        row: the row.
        source: where it stands, for errors.

    Raises:
        UserError: neither is there.
    """
    meta = row.get("meta") or {}
    if "expected" in meta:
        return meta["expected"]
    answer = question_of(row)[1]
    if answer is None:
        remedy = "end it with the right answer, or write it to meta.expected"
        where = ", ".join(part for part in (source, f"row {row.get('id', '?')}") if part)
        raise UserError("the row has no expected answer", where=where, remedy=remedy)
    return answer.get("tool_calls") or answer.get("content") or ""


def group_of(row: Row, suite: Suite) -> str | None:
    """The group of a row, or None where the suite has no groups.

    Raises:
        UserError: the row does not tell its group.
    """
    if suite.group_by is None:
        return None
    value = (row.get("meta") or {}).get(suite.group_by)
    if value is None:
        where = f"suite '{suite.name}', row {row.get('id', '?')}, meta.{suite.group_by}"
        remedy = "add it to the row's meta, or unset the suite's `group_by`"
        raise UserError(f"the row does not tell its {suite.group_by}", where=where, remedy=remedy)
    return str(value)


def run_suite(
    subject: Subject,
    suite: Suite,
    rows: Sequence[Row],
    folder: Path,
    *,
    examples: Sequence[Row] = (),
    max_batch: int = 64,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> list[Result]:
    """Examine a model: one result a group, and the samples in `folder/samples/<suite>.jsonl`.

    Args:
        subject: the model.
        suite: how it is asked and scored.
        rows: checked dialogue rows.
        folder: where the samples go.
        examples: rows that stand with their answers in front of every question (see `Suite.few_shot`).
        max_batch: questions answered together at most.
        on_progress: called with (finished questions, all questions, generated tokens).

    Raises:
        UserError: no rows, or a row that is no dialogue, cannot be put into the suite's words or does not tell its group or answer.
    """
    if not rows:
        raise UserError(f"the suite '{suite.name}' has no questions", remedy="check its data files and its limit")
    for row in rows:  # all of them before the first question: a bad last row must not cost the whole evaluation
        if "messages" not in row:
            where = f"suite '{suite.name}', row {row.get('id', '?')}"
            raise UserError("a suite asks dialogues, this row is none", where=where, remedy="give messages")
        suite.metric_of(group_of(row, suite))
        expected_of(row)
        prompt_of(suite, row, examples)
        check_dialogue(suite, row)
        asked_levels(suite, row)
    report = (lambda done, tokens: on_progress(done, len(rows), tokens)) if on_progress else None
    answers, deterministic = ask(subject, suite, rows, examples, max_batch, report)
    samples = [_sample(subject, suite, asked) for asked in answers]
    path, digest = write_samples(folder, suite.name, samples)
    return summarise(suite, samples, path, digest, deterministic=deterministic)


def summarise(suite: Suite, samples: Iterable[Row], path: str, digest: str, *, deterministic: bool) -> list[Result]:
    """The results of scored samples: one a group, in the order in which the groups first appear; then one an attribute that is `shown`.

    Args:
        suite: how they were asked and scored.
        samples: the scored samples.
        path: the samples' file.
        digest: its sha256.
        deterministic: whether no answer can depend on what ran beside it.
    """
    samples, detail = list(samples), _detail(suite, deterministic)
    scores: dict[str | None, list[float]] = {}
    for sample in samples:
        scores.setdefault(sample["skill"], []).append(sample["score"])
    results = []
    for group, found in scores.items():
        total = math.fsum(found)
        low, high = wilson(total, len(found))
        name = suite.metric_of(group)
        results.append(
            Result(
                suite=suite.name if group is None else f"{suite.name}/{group}",
                metric=name,
                right=get_metric(name).right,
                n=len(found),
                value=total / len(found),
                low=low,
                high=high,
                samples=path,
                samples_sha256=digest,
                detail=detail,
            )
        )
    return results + rank_results(suite, samples, detail, path, digest)


def _detail(suite: Suite, deterministic: bool) -> dict[str, Any]:
    """How the questions were asked and read: without it a number cannot be compared."""
    asked = {"prompt": suite.prompt, "few_shot": suite.few_shot, "own_turns": suite.own_turns}
    how: dict[str, Any] = {"extractor": f"{suite.extractor.name} v{suite.extractor.version}", "max_new_tokens": suite.max_new_tokens}
    # Where not, answers run in batches of the model's own forward, and near ties may fall otherwise in another company.
    how["deterministic"] = deterministic
    return {**how, **{name: value for name, value in asked.items() if value}}


_SAMPLE_KEYS = (
    "id", "skill", "question", "few_shot", "prompt", "prompt_ids", "answer", "answer_ids", "reason", "message",
    "expected", "metric", "correct", "score", "asked", "shown",
)  # fmt: skip


def _sample(subject: Subject, suite: Suite, asked: Asked) -> Row:
    sample = score_sample(subject, suite, asked.row, asked.answer_ids, asked.reason)
    sample |= {"prompt": asked.prompt, "prompt_ids": asked.prompt_ids, "few_shot": suite.few_shot}
    if suite.shown:
        sample |= {"asked": asked_levels(suite, asked.row), "shown": shown_levels(suite, sample["message"])}
    return {key: sample[key] for key in _SAMPLE_KEYS if key in sample}


def score_sample(subject: Subject, suite: Suite, row: Row, answer_ids: list[int], reason: str) -> Row:
    """Read and score one answer."""
    from cairn.chat.parse import parse_answer

    group = group_of(row, suite)
    metric = suite.metric_of(group)
    message = parse_answer(subject.format, subject.tokenizer, answer_ids)
    expected = expected_of(row)
    score = get_metric(metric).score(expected, get_extractor(suite.extractor)(message), row.get("meta") or {})
    if not 0 <= score <= 1:
        raise RuntimeError(f"the metric '{metric}' gave {score}, which is no score in [0, 1]")
    return {
        "id": row.get("id"), "skill": group, "question": _last_words(row), "answer": subject.tokenizer.decode(answer_ids),
        "answer_ids": list(answer_ids), "reason": reason, "message": message,
        "expected": expected, "metric": metric, "correct": score == 1.0, "score": score,
    }  # fmt: skip


def _last_words(row: Row) -> str:
    """What the user said last, for people who read the samples."""
    return next((m["content"] for m in reversed(question_of(row)[0]) if m["role"] == "user" and isinstance(m.get("content"), str)), "")
