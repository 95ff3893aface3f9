"""Dialogues that a model goes through by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cairn.errors import UserError
from cairn.evaluate.ask import TOO_LONG, ask
from cairn.evaluate.run import run_suite
from cairn.evaluate.subject import Subject
from cairn.evaluate.suite import Suite
from cairn.generate.engine import Completion, Engine

Row = dict[str, Any]
SUITE = Suite(name="talk", own_turns=True, max_new_tokens=4)


def dialogue(*turns: str, **more: Any) -> Row:
    roles = ("user", "assistant")
    return {"id": turns[0], "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)], **more}


ROWS = [
    dialogue("Who are you?", "GIVEN one", "And how big?", "GIVEN two", "Really?", "GIVEN three"),
    dialogue("Reverse: hat", "GIVEN four"),
    dialogue("Name a city.", "GIVEN five", "Another one.", "GIVEN six"),
]


@pytest.fixture
def speaker(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str]], None]:
    """Let a function from the prompt's text to the answer's answer in the model's place."""

    def use(answer: Callable[[str], str]) -> None:
        def generate(self: Engine, requests: Any, on_progress: Any = None, cancelled: Any = None) -> list[Completion]:
            said = [subject.tokenizer.encode(answer(subject.tokenizer.decode(r.ids))) for r in requests]
            if on_progress:
                on_progress(len(said), sum(map(len, said)))
            return [Completion(ids, "stop", None) for ids in said]

        monkeypatch.setattr(Engine, "generate", generate)

    return use


def test_earlier_answers_are_the_models_own(subject: Subject, speaker: Any) -> None:
    speaker(lambda prompt: f"own {prompt.count('own')}")
    told: list[tuple[int, int]] = []
    asked, _ = ask(subject, SUITE, ROWS, [], 4, lambda *figures: told.append(figures))
    answers = [subject.tokenizer.decode(one.answer_ids) for one in asked]
    assert answers == ["own 2", "own 0", "own 1"]
    assert [one.row["id"] for one in asked] == [row["id"] for row in ROWS]
    for one, row in zip(asked, ROWS, strict=True):
        assert "GIVEN" not in one.prompt
        assert [m["content"] for m in one.messages if m["role"] == "user"] == [m["content"] for m in row["messages"] if m["role"] == "user"]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == 3


def test_without_it_the_rows_answers_stand(subject: Subject, speaker: Any) -> None:
    speaker(lambda prompt: f"own {prompt.count('own')}")
    asked, _ = ask(subject, SUITE.model_copy(update={"own_turns": False}), ROWS, [], 4)
    assert [subject.tokenizer.decode(one.answer_ids) for one in asked] == ["own 0"] * 3
    assert "GIVEN two" in asked[0].prompt


def test_examples_keep_their_answers(subject: Subject, speaker: Any) -> None:
    speaker(lambda prompt: f"own {prompt.count('own')}")
    [one], _ = ask(subject, SUITE, ROWS[:1], [dialogue("An example?", "SHOWN")], 4)
    assert "SHOWN" in one.prompt
    assert subject.tokenizer.decode(one.answer_ids) == "own 2"


def test_a_dialogue_that_outgrows_the_context_is_wrong_and_says_so(subject: Subject, speaker: Any, tmp_path: Path) -> None:
    speaker(lambda prompt: "word " * 900)
    asked, _ = ask(subject, SUITE, ROWS, [], 4)
    assert [one.reason for one in asked] == [TOO_LONG, "stop", TOO_LONG]
    [result] = run_suite(subject, SUITE, ROWS, tmp_path)
    assert result.value == 0.0
    assert result.n == 3


def test_the_real_engine_goes_through_a_dialogue(subject: Subject, tmp_path: Path) -> None:
    [first] = run_suite(subject, SUITE, ROWS, tmp_path / "a")
    [again] = run_suite(subject, SUITE, ROWS, tmp_path / "b")
    assert first == again
    assert first.detail["own_turns"] is True


def test_functions_are_refused_before_the_first_question(subject: Subject, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}]
    with pytest.raises(UserError, match="nobody answers the calls"):
        run_suite(subject, SUITE, [*ROWS, dialogue("Rain?", "No.", tools=tools)], tmp_path)
