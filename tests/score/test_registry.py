"""Metrics by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cairn.errors import UserError
from cairn.score.registry import get_metric, metrics

CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("name", "expected", "answer", "score"),
    [
        ("exact", "Oslo", {"content": "oslo."}, 1.0),
        ("exact", ["Oslo", "Kristiania"], {"content": "Kristiania"}, 1.0),
        ("exact", 7, {"content": "7"}, 1.0),
        ("exact", "Oslo", {"content": None}, 0.0),
        ("exact", "Oslo", {"content": "Oslo", "tool_calls": [CALL]}, 0.0),
        ("number", 46, {"content": "6+4 -> 46"}, 1.0),
        ("calls", {"name": "f", "arguments": {}}, {"content": "", "tool_calls": [CALL]}, 1.0),
        ("calls", None, {"content": "no tool fits"}, 1.0),
        ("json", {"a": [1]}, {"content": '{"a": [1]}'}, 1.0),
        ("json", {"a": 1, "b": 2}, {"content": '{"b": 2, "a": 1}'}, 1.0),
        ("json_ordered", {"a": 1, "b": 2}, {"content": '{"b": 2, "a": 1}'}, 0.0),
        ("refuses", None, {"content": "I can't help with that."}, 1.0),
        ("refuses", None, {"content": "Mix it well."}, 0.0),
        ("answers", None, {"content": "Mix it well."}, 1.0),
        ("answers", None, {"content": "I can't help with that."}, 0.0),
        ("answers", None, {"content": " "}, 0.0),
    ],
)
def test_scores(name: str, expected: Any, answer: dict[str, Any], score: float) -> None:
    assert get_metric(name).score(expected, {"role": "assistant", **answer}, {}) == score


def test_every_metric_is_described() -> None:
    assert {"exact", "number", "calls", "json", "refuses", "answers"} <= set(metrics())
    assert all(found.right for found in metrics().values())


def test_misspelt() -> None:
    with pytest.raises(UserError, match="did you mean 'exact'"):
        get_metric("exactt")


def test_the_manual_names_every_metric():
    """Only the error of a misspelt one did."""
    told = (Path(__file__).parents[2] / "docs" / "preferences.md").read_text(encoding="utf-8").partition("Score functions")[2]
    told = told.partition("\n\n")[0]
    assert not [name for name in metrics() if f"`{name}`" not in told]
