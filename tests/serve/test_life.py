"""A server's life: callers who leave, limits, and the end by a signal, in the middle of work."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from cairn.cli.main import main

from .conftest import WAIT, Served

LONG = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hi"}],
    "temperature": 0,
    "max_completion_tokens": 16000,
    "stream": True,
}


@contextlib.contextmanager
def streaming(served: Served, **fields: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream."""
    with httpx.stream("POST", f"{served.address}/v1/chat/completions", json={**LONG, **fields}, timeout=WAIT) as answer:
        assert answer.status_code == 200
        yield answer.iter_lines()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def idle(served: Served) -> bool:
    return served.metric("cairn_in_flight") == 0 and served.metric("cairn_engine_running") == 0


def test_a_caller_who_leaves_stops_the_answer(serve: Callable[..., Served]) -> None:
    served = serve("endless")
    with streaming(served) as lines:
        for _ in range(6):
            next(lines)
        assert served.metric("cairn_engine_running") == 1
    until(lambda: idle(served))
    tokens = served.metric('cairn_tokens_total{kind="generated"}')
    assert 0 < tokens < 16000
    # Without a stream there is nothing to write that could fail: the server must listen for the caller's end.
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.address}/v1/chat/completions", json={**LONG, "stream": False}, timeout=1.0)
    until(lambda: idle(served))
    assert served.metric('cairn_answers_total{reason="cancelled"}') == 2


def crowd(served: Served, count: int) -> tuple[list[threading.Thread], list[str]]:
    """Callers who stay to the end, and what they hear: whether or not the engine has a place for all of them at once."""
    heard: list[str] = []
    threads = [threading.Thread(target=lambda: heard.append(served.post(LONG).text)) for _ in range(count)]
    for thread in threads:
        thread.start()
    until(lambda: served.metric("cairn_in_flight") == count)
    return threads, heard


def test_more_than_the_limit_are_told_to_come_back(serve: Callable[..., Served]) -> None:
    served = serve("endless", "--set", "max_in_flight=2", "--set", "drain_seconds=0")
    threads, _ = crowd(served, 2)
    answer = served.post({**LONG, "stream": False})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_requests")
    assert answer.headers["retry-after"]
    assert served.end() == 0
    for thread in threads:
        thread.join()


def test_a_request_has_its_time(serve: Callable[..., Served]) -> None:
    # In three seconds an idle machine wrote all 16,000 tokens, and nothing was cut.
    served = serve("endless", "--set", "request_seconds=1")
    whole = served.post({**LONG, "stream": False})
    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "timeout")
    # On a machine that stands still for a while the time is over before the first token: then the status tells it.
    streamed = served.post(LONG)
    told = streamed.json() if streamed.status_code == 504 else json.loads(streamed.text.strip().splitlines()[-1].removeprefix("data: "))
    assert told["error"]["code"] == "timeout"
    until(lambda: idle(served))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_answers_finish(serve: Callable[..., Served], number: int) -> None:
    served = serve("endless")
    with streaming(served, max_completion_tokens=400) as lines:
        next(lines)
        served.process.send_signal(number)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert served.process.wait(WAIT) == 0
    assert served.log.read_text() == ""
    with pytest.raises(httpx.ConnectError):
        served.get("/health")


def test_the_drain_has_an_end_and_callers_hear_of_it(serve: Callable[..., Served]) -> None:
    """Those whose answer had begun by an event, those who still waited by the status."""
    served = serve("endless", "--set", "drain_seconds=1")
    threads, heard = crowd(served, 5)
    assert served.end() == 0
    for thread in threads:
        thread.join()
    assert len(heard) == 5
    assert all('"server_ending"' in text for text in heard)


def test_a_second_signal_ends_at_once(serve: Callable[..., Served]) -> None:
    served = serve("endless", "--set", "drain_seconds=100000")
    with streaming(served) as lines:
        next(lines)
        served.process.send_signal(signal.SIGINT)
        until(lambda: not _listening(served))
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(WAIT) in (0, 130)


def _listening(served: Served) -> bool:
    try:
        served.get("/health")
    except httpx.HTTPError:
        return False
    return True


def test_mistakes_on_the_command_line(checkpoints: Any, capsys: pytest.CaptureFixture[str], serve: Callable[..., Served]) -> None:
    folder = str(checkpoints("karakuri"))
    served = serve("karakuri")
    for words, told in (
        (["--port", str(served.port)], "cannot listen"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
        (["--set", "max_body=1"], "max_body_bytes"),
        (["--set", "max_body_bytes=-1"], "max_body_bytes"),
        (["--set", "drain_seconds"], "name=value"),
        (["--api-key", " "], "API key"),
        (["--format", "k3"], "unknown chat format"),
    ):
        assert main(["serve", folder, *words]) == 2
        assert told in capsys.readouterr().err
    assert main(["serve", "/no/such/folder"]) == 2


def test_help_is_light() -> None:
    code = "import sys; from cairn.cli.main import main; main(['serve', '--help']); sys.exit(bool({'torch', 'fastapi'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
