"""Generation suites, on a tiny random model and with an oracle in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cairn.errors import UserError
from cairn.evaluate.ask import TOO_LONG
from cairn.evaluate.question import question_of
from cairn.evaluate.result import side_by_side
from cairn.evaluate.run import expected_of, run_suite
from cairn.evaluate.subject import Subject
from cairn.evaluate.suite import Suite, load_suite
from cairn.generate.engine import Engine
from cairn.ledger.digest import file_digest
from cairn.score.intervals import wilson

Row = dict[str, Any]
Oracle = Callable[[Callable[[Row], Row]], None]


def short(**more: Any) -> Suite:
    return load_suite("pebble").model_copy(update={"max_new_tokens": 6, **more})


def samples(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "samples" / "pebble.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_sample_is_kept_with_what_the_model_saw(subject: Subject, rows: list[Row], tmp_path: Path) -> None:
    told: list[tuple[int, int, int]] = []
    results = run_suite(subject, short(), rows, tmp_path, on_progress=lambda *figures: told.append(figures))
    found = samples(tmp_path)
    assert [s["id"] for s in found] == [r["id"] for r in rows], "in the order of the rows"
    for sample, row in zip(found, rows, strict=True):
        assert {"id", "skill", "prompt", "prompt_ids", "answer", "answer_ids", "reason", "expected", "correct", "score"} <= set(sample)
        rendered = subject.renderer.render(row["messages"][:-1], tools=row.get("tools"), add_generation_prompt=True)
        assert sample["prompt_ids"] == list(rendered.ids)
        assert sample["prompt"] == rendered.text
        assert sample["question"] == row["messages"][-2]["content"]
        answer = row["messages"][-1]["content"]
        assert answer == "" or answer not in sample["prompt"], "the answer is not given away"
        assert 1 <= len(sample["answer_ids"]) <= 6
        assert sample["answer"] == subject.tokenizer.decode(sample["answer_ids"])
    assert told[-1][:2] == (len(rows), len(rows))
    assert {r.suite for r in results} == {f"pebble/{row['meta']['skill']}" for row in rows}


def test_the_numbers_follow_from_the_samples(subject: Subject, rows: list[Row], tmp_path: Path) -> None:
    results = run_suite(subject, short(), rows, tmp_path)
    found = samples(tmp_path)
    for result in results:
        scores = [s["score"] for s in found if f"pebble/{s['skill']}" == result.suite]
        assert result.n == len(scores)
        assert result.value == sum(scores) / len(scores)
        assert (result.low, result.high) == wilson(sum(scores), len(scores))
        assert result.samples_sha256 == file_digest(tmp_path / result.samples)


def test_again_gives_the_same_bytes(subject: Subject, rows: list[Row], tmp_path: Path) -> None:
    first = run_suite(subject, short(), rows, tmp_path / "a")
    assert run_suite(subject, short(), rows, tmp_path / "b") == first


def test_right_answers_score_one_in_every_skill(subject: Subject, rows: list[Row], oracle: Oracle, tmp_path: Path) -> None:
    oracle(lambda row: row["messages"][-1])
    results = run_suite(subject, load_suite("pebble"), rows, tmp_path)
    assert {r.suite: r.value for r in results} == {r.suite: 1.0 for r in results}
    assert len(results) == 10
    assert all(s["correct"] for s in samples(tmp_path))


def test_wrong_answers_score_nothing_in_every_skill(subject: Subject, rows: list[Row], oracle: Oracle, tmp_path: Path) -> None:
    other_call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    wrong = {
        "functions": {"role": "assistant", "content": "", "tool_calls": [other_call]},
        "arithmetic": {"role": "assistant", "content": "44 + 68 = 113."},
        "json": {"role": "assistant", "content": '{"city": "Rome"}'},
        "refusal": {"role": "assistant", "content": "Take a mask."},
        "harmless": {"role": "assistant", "content": "I can't help with that."},
    }
    oracle(lambda row: wrong.get(row["meta"]["skill"], {"role": "assistant", "content": "Reversed: hat."}))
    results = run_suite(subject, load_suite("pebble"), rows, tmp_path)
    assert {r.suite: r.value for r in results} == {r.suite: 0.0 for r in results}
    assert not any(s["correct"] for s in samples(tmp_path))


def test_without_groups_and_without_meta(subject: Subject, rows: list[Row], oracle: Oracle, tmp_path: Path) -> None:
    plain = [{k: v for k, v in row.items() if k != "meta"} for row in rows[3:5]]
    oracle(lambda row: row["messages"][-1])
    (result,) = run_suite(subject, Suite(name="plain"), plain, tmp_path)
    assert (result.suite, result.metric, result.n, result.value) == ("plain", "exact", 2, 1.0)


def test_prompt_and_examples_are_what_the_model_saw(subject: Subject, rows: list[Row], tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    asked = [{**rows[3], "messages": [system, *rows[3]["messages"]]}, rows[4]]
    suite = short(name="pebble", prompt="{skill}: {question} Say it.", few_shot=["l1", "c1"])
    results = run_suite(subject, suite, asked, tmp_path, examples=[rows[6], rows[3]])
    put = {row["id"]: {"role": "user", "content": f"{row['meta']['skill']}: {row['messages'][0]['content']} Say it."} for row in rows}
    shown = [put["l1"], rows[6]["messages"][1], put["c1"], rows[3]["messages"][1]]
    for sample, begin, name in zip(samples(tmp_path), ([system], []), ("c1", "i1"), strict=True):
        rendered = subject.renderer.render([*begin, *shown, put[name]], add_generation_prompt=True)
        assert (sample["prompt"], sample["prompt_ids"]) == (rendered.text, list(rendered.ids))
        assert sample["few_shot"] == ["l1", "c1"]
    assert [s["question"] for s in samples(tmp_path)] == [rows[3]["messages"][0]["content"], rows[4]["messages"][0]["content"]]
    assert all(r.detail["prompt"] == suite.prompt and r.detail["few_shot"] == ["l1", "c1"] for r in results)


@pytest.mark.parametrize(
    ("suite", "change", "message"),
    [
        ({"prompt": "{question} {topik}"}, {}, "names 'topik'"),
        ({}, {"messages": [{"role": "user", "content": "?"}]}, "no answer"),
        ({}, {"text": "x", "messages": []}, "no answer"),
        ({}, {"tools": [{"name": "f"}]}, "tools of its own"),
    ],
)
def test_what_cannot_be_put_is_told_before_any_question_is_asked(
    subject: Subject, rows: list[Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suite: Row, change: Row, message: str
) -> None:
    monkeypatch.setattr(Engine, "generate", lambda *args, **more: pytest.fail("a question was asked"))
    with pytest.raises(UserError, match=message):
        run_suite(subject, short(**suite), rows[3:4], tmp_path, examples=[{**rows[6], **change}])


def test_a_prompt_beyond_the_context_counts_as_wrong(subject: Subject, rows: list[Row], tmp_path: Path) -> None:
    long = {**rows[3], "messages": [{"role": "user", "content": "word " * 2000}, rows[3]["messages"][-1]]}
    (result,) = run_suite(subject, short(), [rows[3], long], tmp_path)
    assert result.n == 2
    assert samples(tmp_path)[1]["reason"] == TOO_LONG
    assert samples(tmp_path)[1]["correct"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": {"expected": 1}}, "does not tell its skill"),
        ({"meta": {"skill": "juggling", "expected": 1}}, "no metric for the group 'juggling'"),
        ({"meta": {"skill": "facts"}, "messages": [{"role": "user", "content": "?"}]}, "no expected answer"),
    ],
)
def test_a_bad_row_is_told_before_any_question_is_asked(
    subject: Subject, rows: list[Row], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Row, message: str
) -> None:
    monkeypatch.setattr(Engine, "generate", lambda *args, **more: pytest.fail("a question was asked"))
    with pytest.raises(UserError, match=message):
        run_suite(subject, short(), [*rows, {**rows[-1], **change}], tmp_path)


def test_no_rows_and_texts_are_refused(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no questions"):
        run_suite(subject, short(), [], tmp_path)
    with pytest.raises(UserError, match="asks dialogues"):
        run_suite(subject, short(), [{"text": "x", "id": "1"}], tmp_path)


def test_what_is_asked_and_expected() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    dialogue = [{"role": "user", "content": "a"}, call, {"role": "tool", "content": "{}"}, {"role": "assistant", "content": "b"}]
    assert question_of({"messages": dialogue}) == (dialogue[:3], dialogue[3])
    assert question_of({"messages": dialogue[:2]}) == (dialogue[:1], call)
    assert expected_of({"messages": dialogue}) == "b"
    assert expected_of({"messages": dialogue[:2]}) == call["tool_calls"]
    assert expected_of({"messages": dialogue, "meta": {"expected": None}}) is None


def test_side_by_side_refuses_other_questions(subject: Subject, rows: list[Row], tmp_path: Path) -> None:
    one = run_suite(subject, short(), rows, tmp_path)
    table = side_by_side([one, one])
    assert [row["suite"] for row in table] == [r.suite for r in one]
    assert all(row["values"][0] == row["values"][1] and set(row) == {"suite", "metric", "n", "values"} for row in table)
    with pytest.raises(ValueError, match="same questions"):
        side_by_side([one, [one[0].model_copy(update={"n": 99}), *one[1:]]])
