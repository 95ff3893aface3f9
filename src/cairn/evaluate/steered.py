"""How far answers follow the attributes that they are asked for: rank correlations over a suite's samples. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cairn.chat.attributes import turn_attributes
from cairn.errors import UserError
from cairn.evaluate.question import question_of
from cairn.evaluate.result import Result
from cairn.evaluate.suite import Suite
from cairn.score.intervals import rank_interval
from cairn.score.metric import words
from cairn.score.ranks import spearman
from cairn.score.shown import get_measure

Row = dict[str, Any]
SPEARMAN = "spearman"
"""The metric's name in results."""


def asked_levels(suite: Suite, row: Row) -> dict[str, int]:
    """The level of each of the suite's attributes that the row asks for.

    Raises:
        UserError: it asks for none of one of them.
    """
    asked = turn_attributes(row, len(question_of(row)[0])) if suite.shown else {}
    for name in suite.shown:
        if name not in asked:
            where = f"suite '{suite.name}', row {row.get('id', '?')}"
            remedy = "give it in the row's attributes, or leave it out of the suite's `shown`"
            raise UserError(f"the row does not say how much {name} it asks for", where=where, remedy=remedy)
    return {name: asked[name] for name in suite.shown}


def shown_levels(suite: Suite, message: Row) -> dict[str, float]:
    """What an answer shows of each of the suite's attributes."""
    return {name: get_measure(name).of(words(message)) for name in suite.shown}


def rank_results(suite: Suite, samples: Sequence[Row], detail: Row, path: str, digest: str) -> list[Result]:
    """One result for each of the suite's attributes. Where all answers show the same, or all questions ask for the same, nothing is known
    of an order: the correlation is 0, between -1 and 1.

    Args:
        suite: which attributes.
        samples: scored samples with "asked" and "shown".
        detail: how they were asked and read.
        path: the samples' file.
        digest: its sha256.
    """
    results = []
    for name in suite.shown:
        value = spearman([one["asked"][name] for one in samples], [one["shown"][name] for one in samples])
        low, high = (-1.0, 1.0) if value is None else rank_interval(value, len(samples))
        right = f"rank correlation of the level asked for and what the answer shows ({get_measure(name).what})"
        results.append(
            Result(suite=f"{suite.name}/{name}", metric=SPEARMAN, right=right, n=len(samples), value=value or 0.0, low=low, high=high,
                   samples=path, samples_sha256=digest, detail=detail)
        )  # fmt: skip
    return results
