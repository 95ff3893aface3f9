"""Results for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.pipeline.results import bar, choose_samples, dialogues, difference_text, show_message


@given(st.floats(0, 1))
def test_only_all_fills_the_bar(value: float) -> None:
    assert len(bar(value)) == 20
    assert (bar(value) == "█" * 20) == (value == 1)
    assert abs(bar(value).count("█") - 20 * value) <= 1


def sample(identity: str, skill: str | None, expected: Any = "x", correct: bool = True) -> dict[str, Any]:
    message = {"role": "assistant", "content": f"answer {identity}"}
    scored = {"id": identity, "skill": skill, "expected": expected, "correct": correct}
    return {**scored, "question": f"question {identity}", "message": message}


def test_samples_are_chosen_by_skill_and_not_by_success() -> None:
    samples = [
        sample("1", "lists"),
        sample("2", "functions", []),
        sample("3", "functions", [{"name": "f"}], correct=False),
        sample("4", "functions", [{"name": "g"}]),
        sample("5", "arithmetic"),
        sample("6", "facts"),
    ]
    assert [s["id"] for s in choose_samples(samples)] == ["3", "5", "6"]
    assert [s["id"] for s in choose_samples(samples, 9)] == ["3", "5", "6", "1"]
    assert choose_samples([]) == []


def test_dialogues_say_which_answer_was_right(tmp_path: Path) -> None:
    rows = [{"samples": "s.jsonl", "metric": "exact"}, {"samples": "gone.jsonl", "metric": "perplexity"}]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    lines = [sample("1", "facts"), sample("2", "korean", correct=False)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = (text.plain for text in dialogues([tmp_path]))
    assert "✗ korean" in first
    assert "question 2" in first
    assert "✓ facts" in second
    assert "answer 1" in second


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": " yes "}, "yes"),
        ({"content": ""}, "(nothing)"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": "서울"}}}]}, '→ f(a=1, b="서울")'),
        ({"content": "so", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, "so\n→ f()"),
    ],
)
def test_messages(message: dict[str, Any], text: str) -> None:
    assert show_message(message) == text


def test_differences_that_leave_out_zero_are_marked() -> None:
    assert difference_text((0.05, 0.01, 0.09)) == "+5.0 (+1.0 to +9.0) *"
    assert difference_text((-0.05, -0.11, 0.01)) == "-5.0 (-11.0 to +1.0)"
