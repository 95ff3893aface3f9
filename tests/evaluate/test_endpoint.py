"""A judge behind an address, against a server that behaves badly in every way that servers do."""

from __future__ import annotations

import json
import time

import pytest

from cairn.errors import UserError
from cairn.evaluate import endpoint as module
from cairn.evaluate.endpoint import Endpoint
from cairn.evaluate.judge import JudgeConfig

from .false_judge import judging


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)


def ask(address, count=1, **options):
    """What the judge at an address replies to `count` dialogues: {number: (reply, why there is none)}."""
    found = {}
    config = JudgeConfig(**{"endpoint": address, "name": "wise", "timeout": 20.0, **options})
    dialogues = [[{"role": "user", "content": f"answer {i}"}] for i in range(count)]
    Endpoint(config)(dialogues, lambda number, reply, why: found.update({number: (reply, why)}))
    return found


def test_many_are_asked_at_once_and_each_reply_belongs_to_its_dialogue(monkeypatch):
    monkeypatch.setenv("CAIRN_JUDGE_KEY", "secret")
    with judging(lambda text, number: f"{text} [[5]]") as server:
        found = ask(server.address, 30, parallel=4)
    assert found == {i: (f"answer {i} [[5]]", "") for i in range(30)}
    assert set(server.keys) == {"Bearer secret"}


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("CAIRN_JUDGE_KEY", raising=False)
    with judging(lambda text, number: "[[5]]") as server:
        ask(server.address)
    assert server.keys == [None]


@pytest.mark.parametrize("bad", [429, 500, 503, b"<html>", b"[]"])
def test_what_may_pass_is_tried_again(bad):
    with judging(lambda text, number: bad if number < 3 else "[[5]]") as server:
        assert ask(server.address) == {0: ("[[5]]", "")}
    assert len(server.asked) == 3


def test_a_server_that_asks_for_patience_gets_it():
    with judging(lambda text, number: 429 if number == 1 else "[[5]]") as server:
        begun = time.monotonic()
        assert ask(server.address) == {0: ("[[5]]", "")}
        assert time.monotonic() - begun >= 1


def test_a_key_is_sent_without_its_lines_end_and_never_with_what_no_header_takes(monkeypatch):
    with judging(lambda text, number: "[[5]]") as server:
        monkeypatch.setenv("CAIRN_JUDGE_KEY", "secret\n")
        ask(server.address)
        assert server.keys == ["Bearer secret"]
        for bad in ("two\nlines", "schlüssel"):
            monkeypatch.setenv("CAIRN_JUDGE_KEY", bad)
            with pytest.raises(UserError, match="no key has") as told:
                ask(server.address)
            assert bad not in str(told.value)


def test_a_late_reply_is_tried_again_and_then_none():
    with judging(lambda text, number: None) as server:
        begun = time.monotonic()
        assert ask(server.address, retries=1, timeout=0.3) == {0: (None, "no reply in 0.3 s")}
        assert time.monotonic() - begun < 15
    assert len(server.asked) == 2


@pytest.mark.parametrize("body", [
    b'{"choices": []}', b'{"choices": [{"text": "hm"}]}', b'{"error": 1}',
])  # fmt: skip
def test_a_response_that_is_no_completion_is_no_reply(body):
    with judging(lambda text, number: body) as server:
        assert "no chat completion" in ask(server.address)[0][1]
    assert len(server.asked) == 1, "the same request would be answered the same"


def test_a_reply_without_content_says_nothing():
    with judging(lambda text, number: json.dumps({"choices": [{"message": {"content": None}}]}).encode()) as server:
        assert ask(server.address) == {0: ("", "")}


def test_a_dialogue_that_the_server_refuses_is_the_only_one():
    with judging(lambda text, number: 400 if text == "answer 1" else "[[5]]") as server:
        found = ask(server.address, 3)
    assert [found[i][0] for i in range(3)] == ["[[5]]", None, "[[5]]"]
    assert found[1][1] == "400 Bad Request (told to say 400)"


@pytest.mark.parametrize(("status", "what", "remedy"), [
    (401, "does not let us in", "CAIRN_JUDGE_KEY"), (403, "does not let us in", "CAIRN_JUDGE_KEY"), (404, "is not there", "/v1"),
    (405, "is not there", "/v1"), (302, "is not there", "/v1"),
])  # fmt: skip
def test_what_concerns_every_request_ends_the_run_at_once(status, what, remedy):
    with judging(lambda text, number: status) as server, pytest.raises(UserError, match=what) as told:
        ask(server.address, 50, parallel=2)
    assert remedy in told.value.remedy
    assert len(server.asked) <= 2


def test_a_server_that_has_stopped_to_answer_is_given_up():
    with judging(lambda text, number: "[[5]]" if number <= 5 else 500) as server, pytest.raises(UserError) as told:
        ask(server.address, 100, retries=0, parallel=1)
    assert "10 dialogues in a row" in told.value.what
    assert "told to say 500" in told.value.what
    assert len(server.asked) < 100


def check(address, **options):
    Endpoint(JudgeConfig(**{"endpoint": address, "name": "wise", "retries": 0, "timeout": 20.0, **options})).check()


def test_a_server_is_looked_up_before_anything_is_generated():
    with judging(lambda text, number: "") as server:
        check(server.address)
        check(server.address + "/")
        with pytest.raises(UserError, match="the endpoint has no model 'wize'") as told:
            check(server.address, name="wize")
        assert told.value.remedy == "did you mean 'wise'?"
        server.models = 404
        check(server.address)
        server.models = 401
        with pytest.raises(UserError, match="does not let us in"):
            check(server.address)
        server.models = 503
        with pytest.raises(UserError, match="does not answer: 503"):
            check(server.address)
    with pytest.raises(UserError, match=r"does not answer: .*refused") as told:
        check(server.address)
    assert "start the server" in told.value.remedy


def test_a_name_that_cannot_be_found():
    with pytest.raises(UserError, match="does not answer"):
        check("http://no-such-host.invalid/v1")
