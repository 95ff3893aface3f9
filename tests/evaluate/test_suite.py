"""Suites as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cairn.errors import UserError
from cairn.evaluate.extract import Extractor, get_extractor
from cairn.evaluate.suite import Suite, load_suite, suite_names


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_of_the_package_is_sound(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert suite.data
    assert suite.description


def test_pebble_scores_every_skill_in_its_own_way() -> None:
    suite = load_suite("pebble")
    assert suite.metric_of("functions") == "calls"
    assert suite.metric_of("refusal") == "refuses"
    with pytest.raises(UserError, match="no metric for the group 'juggling'"):
        suite.metric_of("juggling")


def test_a_suite_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: [a.jsonl]\nmetric: number\nextractor: {name: last_line}\n")
    assert load_suite(str(path)).metric_of(None) == "number"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nmetrik: exact\n", "did you mean 'metric'"),
        ("name: x\nmetric: exakt\n", "did you mean 'exact'"),
        ("name: x\nmetrics: {a: exact}\n", "no group"),
        ("name: x\nextractor: {name: message, version: 2}\n", "version 2"),
        ("name: x\nextractor: {name: massage}\n", "did you mean 'message'"),
        ("name: ../x\n", "file name"),
        ("name: x\nmax_new_tokens: 0\n", "at least 1"),
        ("name: x\nlimit: 0\n", "greater than"),
        ("name: x\nprompt: Answer this\n", "must hold {question}"),
        ("name: x\nfew_shot: [a, a]\n", "named twice"),
        ("description: x\n", "'name' is missing"),
        ("", "empty"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_suite(str(path))


def test_an_unknown_suite() -> None:
    with pytest.raises(UserError, match="did you mean 'pebble'"):
        load_suite("peble")
    with pytest.raises(UserError, match="no such file"):
        load_suite("nowhere/mine.yaml")


def test_extractors() -> None:
    answer = {"role": "assistant", "content": "Well,\n\n```python\nx = 1\n```\nthat is it.\n\n"}
    assert get_extractor(Extractor())(answer) == answer
    assert get_extractor(Extractor(name="last_line"))(answer)["content"] == "that is it."
    assert get_extractor(Extractor(name="code_block"))(answer)["content"] == "x = 1\n"
    bare = {"role": "assistant", "content": "no fence"}
    assert get_extractor(Extractor(name="code_block"))(bare) == bare
    assert get_extractor(Extractor(name="last_line"))({"role": "assistant", "content": ""})["content"] == ""


def test_a_suite_is_frozen_and_written_back(tmp_path: Path) -> None:
    suite = load_suite("pebble")
    assert Suite.model_validate(suite.model_dump(mode="json")) == suite
