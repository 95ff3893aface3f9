"""Whether an answer begins with the expected words."""

from __future__ import annotations

import pytest

from cairn.score.registry import get_metric


@pytest.mark.parametrize("answer", ["River: the capital is Oslo.", "river", "RIVER!", " River, yes"])
def test_takes_the_word_with_whatever_follows(answer: str) -> None:
    assert get_metric("begins").score("river", {"role": "assistant", "content": answer}, {}) == 1.0


@pytest.mark.parametrize("answer", ["", "Rivers: yes", "The river", "riverbank", "riv"])
def test_refuses_other_beginnings(answer: str) -> None:
    assert get_metric("begins").score("river", {"role": "assistant", "content": answer}, {}) == 0.0


def test_a_call_begins_with_no_word() -> None:
    call = {"role": "assistant", "content": "river", "tool_calls": [{"function": {"name": "river", "arguments": {}}}]}
    assert get_metric("begins").score("river", call, {}) == 0.0
