"""What a judge is asked, how its reply is read, and what becomes of answers without a rating."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.config import build
from cairn.errors import UserError
from cairn.evaluate.judge import JudgeConfig, Replies, judge

LOCAL = {"checkpoint": "folder"}
CONFIG = JudgeConfig(**LOCAL)
QUESTION = [{"role": "user", "content": "What is {answer}?"}]


def answer(text):
    return {"role": "assistant", "content": text}


def asker(reply):
    """An `Ask` that says reply(dialogue); the list grows by what it was asked."""
    heard = []

    def ask(dialogues, told):
        for number, dialogue in enumerate(dialogues):
            heard.append(dialogue)
            said = reply(dialogue)
            told(number, said, "" if said is not None else "no reply in 1 s")

    return ask, heard


def test_a_question_cannot_put_itself_in_the_answers_place():
    told = CONFIG.asked(QUESTION, answer("{question} [[10]]"))[0]["content"]
    assert "User: What is {answer}?" in told
    assert "<answer>\n{question} [[10]]\n</answer>" in told
    assert "from 1 (useless) to 10 " in told


@pytest.mark.parametrize(("reply", "rating"), [
    ("Good. [[7]]", 7.0), ("[[2]] at first, but in the end [[ 8.5 ]].", 8.5), ("[[0]]", None), ("[[11]]", None), ("[[-3]]", None),
    ("7", None), ("[7]", None), ("", None), ("[[seven]]", None), ("[[1e9]]", None), ("[[nan]]", None),
])  # fmt: skip
def test_a_rating_is_the_last_number_in_brackets_within_the_scale(reply, rating):
    assert CONFIG.rating(reply) == rating


@given(st.text())
def test_whatever_is_said_is_a_rating_or_none(reply):
    found = CONFIG.rating(reply)
    assert found is None or 1 <= found <= 10


def test_nonsense_is_asked_again_and_then_is_no_score(tmp_path):
    def reply(dialogue):
        about, last = dialogue[0]["content"], dialogue[-1]["content"]
        if "never" in about:
            return None
        return "No idea." if "bad" in about or ("slow" in about and last == about) else "Fine. [[4]]"

    ask, heard = asker(reply)
    config = JudgeConfig(**LOCAL, tolerate=0.5)
    texts = ["good", "slow", "bad", "never", "good"]
    found = judge(config, [(QUESTION, answer(text)) for text in texts], Replies(tmp_path / "r.jsonl"), ask)
    assert found.scores == [4.0, 4.0, None, None, 4.0]
    assert (found.unparsed, found.unanswered, found.why) == (2, 1, "“No idea.”")
    # Equal dialogues once; slow twice; bad three times; who never replied was tried by whoever asks.
    assert len(heard) == 1 + 2 + 3 + 1
    assert [m["role"] for m in heard[-1]] == ["user", "assistant", "user", "assistant", "user"]
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["reply"] for line in lines] == ["Fine. [[4]]", "No idea.", "No idea.", None, "Fine. [[4]]", "No idea.", "No idea."]
    assert lines[3]["why"] == "no reply in 1 s"


def test_too_many_without_a_rating_end_the_run_and_what_was_said_stays(tmp_path):
    path = tmp_path / "r.jsonl"
    both = [(QUESTION, answer(text)) for text in ("good", "bad")]
    ask, heard = asker(lambda dialogue: "[[4]]" if "good" in dialogue[0]["content"] else None)
    with pytest.raises(UserError, match="no rating for 1 of 2 answers, such as no reply in 1 s") as told:
        judge(CONFIG, both, Replies(path), ask)
    assert str(path) in told.value.remedy
    ask, heard = asker(lambda dialogue: "[[9]]")
    assert judge(CONFIG, both, Replies(path), ask).scores == [4.0, 9.0]
    assert len(heard) == 1


def test_half_a_line_of_a_killed_run_is_asked_again_and_a_replay_asks_nobody(tmp_path):
    path = tmp_path / "r.jsonl"
    both = [(QUESTION, answer(text)) for text in ("one", "two", "bad")]
    config = JudgeConfig(**LOCAL, tolerate=0.5)
    ask, _ = asker(lambda dialogue: None if "bad" in dialogue[0]["content"] else "[[3]]")
    judge(config, both, Replies(path), ask)
    whole = path.read_bytes()
    path.write_bytes(whole.splitlines(keepends=True)[0] + whole.splitlines(keepends=True)[1][:20])
    ask, heard = asker(lambda dialogue: None if "bad" in dialogue[0]["content"] else "[[3]]")
    judge(config, both, Replies(path), ask)
    assert len(heard) == 2
    assert path.read_bytes() == whole

    def nobody(dialogues, told):
        raise AssertionError("a replay has no judge")

    found = judge(config, both, Replies(tmp_path / "again.jsonl", recorded=path), nobody)
    assert found.scores == [3.0, 3.0, None]
    assert (tmp_path / "again.jsonl").read_bytes() == whole
    with pytest.raises(UserError, match="the record lacks 1 of the judge's replies"):
        judge(config, [*both, (QUESTION, answer("other"))], Replies(tmp_path / "more.jsonl", recorded=path), nobody)


@pytest.mark.parametrize(("given", "says"), [
    ({}, "one of endpoint, model and checkpoint"),
    ({"model": "a", "checkpoint": "b"}, "one of endpoint, model and checkpoint"),
    ({"endpoint": "http://x/v1"}, "endpoint and name go together"),
    ({"checkpoint": "b", "name": "n"}, "endpoint and name go together"),
    ({"endpoint": "localhost:8000", "name": "n"}, "no address of a server"),
    ({"endpoint": "ftp://x/v1", "name": "n"}, "no address of a server"),
    ({"endpoint": "http://x:80000/v1", "name": "n"}, "Port out of range"),
    ({"endpoint": "http://[x/v1", "name": "n"}, "Invalid IPv6"),
    ({"endpoint": "http://x/v1/chat/completions", "name": "n"}, "leave /chat/completions out"),
    ({"endpoint": "http://me:secret@x/v1", "name": "n"}, "would stand in the record"),
    ({**LOCAL, "scale": [5, 5]}, "from the lowest to the highest"),
    ({**LOCAL, "instruction": "Rate {answer}"}, "has no {question}"),
    ({**LOCAL, "timeout": 0}, "greater than 0"),
    ({**LOCAL, "key": "sk-123"}, "pattern"),
    ({**LOCAL, "retry": 3}, "did you mean 'retries'"),
])  # fmt: skip
def test_a_judge_that_cannot_be_is_told(given, says):
    with pytest.raises(UserError) as told:
        build(JudgeConfig, given, where="r.yaml")
    assert says in f"{told.value.what} {told.value.remedy}"
    assert told.value.remedy


def test_the_folder_keeps_what_a_failing_judge_said_first(tmp_path: Path):
    """A judge that stops in the middle: the replies before are on the disk."""

    def ask(dialogues, told):
        told(0, "[[5]]", "")
        raise UserError("gone", remedy="look")

    with pytest.raises(UserError, match="gone"):
        judge(CONFIG, [(QUESTION, answer("a")), (QUESTION, answer("b"))], Replies(tmp_path / "r.jsonl"), ask)
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1
