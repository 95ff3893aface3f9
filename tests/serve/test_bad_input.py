"""What a server must survive: each gets an answer of OpenAI's shape, and the next request is served."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from .conftest import WAIT, Served

HI = [{"role": "user", "content": "Hi"}]
DEEP: Any = {}
for _ in range(60):
    DEEP = {"a": DEEP}
BROKEN_CALL = {"type": "function", "function": {"name": "f", "arguments": "{"}}
WIDE = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(100)}, "required": ["p99"]}
NO_OBJECT = {"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HI, "temperature": 0, "max_completion_tokens": 3, **fields}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}}


@pytest.fixture(scope="module")
def served(serve: Callable[..., Served]) -> Served:
    """A model with a context of 1024 tokens."""
    return serve("karakuri", "--set", "max_body_bytes=200000", "--set", "max_choices=4")


def refused(answer: Any, status: int, param: str | None = None, code: str | None = None) -> str:
    """Check the shape, and give the message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    return str(error["message"])


def alive(served: Served) -> None:
    answer = served.post(ask())
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model": "tiny", "temperature": NaN}', "NaN is not a JSON number"),
        (b'{"model": "\xff\xfe"}', "not UTF-8"),
        (b'{"model": "\\ud800"}', "lone surrogate"),
        (b"[" * 100_000, "levels deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "levels deep"),
        (b"[]", "must be a JSON object"),
        (
            b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}",
            "not valid JSON: Exceeds the limit (4300 digits) for integer string conversion",
        ),
    ],
)
def test_bodies_that_are_no_json(served: Served, body: bytes, words: str) -> None:
    told = refused(served.post(body), 400)
    assert words in told
    assert "sys." not in told
    alive(served)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperatur": 1}, "temperatur"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"n": 10**30}, "n"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"max_completion_tokens": 10**18}, "max_completion_tokens"),
        ({"max_completion_tokens": 20000}, "max_completion_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"top_k": -1}, "top_k"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 5}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"functions": []}, "functions"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [*HI, *HI]}, "messages[1].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*HI, {"role": "assistant", "content": "x"}]}, "messages[1].role"),
        (
            {"messages": [*HI, {"role": "assistant", "tool_calls": [BROKEN_CALL]}, *HI]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"attributes": {"humor": 10**12}}, "attributes.humor"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "regex": "a"}, "regex"),
        ({"regex": "a", "choice": ["b"]}, "choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)  # fmt: skip
def test_fields_out_of_shape_or_range(served: Served, fields: dict[str, Any], param: str) -> None:
    refused(served.post(ask(**fields)), 400, param)


def test_the_next_request_after_all_of_these_is_served(served: Served) -> None:
    alive(served)
    assert served.metric("cairn_in_flight") == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (schema({"$ref": "#"}), "response_format"),
        (schema({"type": "string", "allOf": [{"type": "integer"}]}), "response_format"),
        (schema({"type": "array", "items": {"$ref": "#"}, "minItems": 1}), "response_format"),
        (schema({"$ref": "http://127.0.0.1:1/other.json"}), "response_format"),
        (schema(False), "response_format"),
        (schema({"enum": []}), "response_format"),
        (schema(WIDE), "max_completion_tokens"),
        ({"regex": "("}, "regex"),
        ({"regex": "(a?){5000}a{5000}", "max_completion_tokens": 5}, None),
        ({"regex": "(?=a)b"}, "regex"),
        ({"regex": ""}, "regex"),
        ({"choice": []}, "choice"),
        ({"choice": [""]}, "choice"),
        ({"grammar": "start: start start"}, "grammar"),
        ({"grammar": "???"}, "grammar"),
        ({"tools": [NO_OBJECT]}, "tools[0].function.parameters.type"),
    ],
)  # fmt: skip
def test_constraints_that_nothing_satisfies_or_that_cost_too_much(served: Served, fields: dict[str, Any], param: str | None) -> None:
    begun = time.monotonic()
    refused(served.post(ask(**fields)), 400, param)
    assert time.monotonic() - begun < WAIT / 2
    alive(served)


def test_a_catastrophic_regular_expression_holds_nobody_up(served: Served) -> None:
    answers: list[Any] = []
    patterns = ["(a*)*" * 40 + "b", "((a|b)*c){900}", "&".join(["(.*a.{18})"] * 20)]
    threads = [threading.Thread(target=lambda p=p: answers.append(served.post(ask(regex=p, max_completion_tokens=20)))) for p in patterns]
    for thread in threads:
        thread.start()
    alive(served)
    for thread in threads:
        thread.join()
    assert all(answer.status_code in (200, 400) for answer in answers), [answer.text for answer in answers]
    alive(served)


def test_large_things(served: Served) -> None:
    refused(served.post(b"x" * 10_000_000), 413, code="body_too_large")
    too_long = [{"role": "user", "content": "a" * 5000}]
    refused(served.post(ask(messages=too_long)), 400, "messages", "context_length_exceeded")
    refused(served.post({"model": "tiny", "prompt": "a" * 5000}, "/v1/completions"), 400, "prompt", "context_length_exceeded")
    # What is far too long is not even cut into tokens: megabytes would take many seconds of everybody's.
    far = "a" * 190_000
    assert "at least" in refused(served.post(ask(messages=[{"role": "user", "content": far}])), 400, "messages", "context_length_exceeded")
    told = refused(served.post({"model": "tiny", "prompt": ["a", far]}, "/v1/completions"), 400, "prompt", "context_length_exceeded")
    assert "at least" in told
    many = [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(1001)]
    refused(served.post(ask(messages=many)), 400, "messages", "context_length_exceeded")
    alive(served)


def test_bodies_without_a_length_are_bounded_too(served: Served) -> None:
    """Sent in chunks, with no length in front."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=WAIT) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(200):
                line.sendall(part)
        except OSError:
            pass  # the server answered and closed
        line.settimeout(WAIT)
        with contextlib.suppress(ConnectionResetError):
            assert b"413" in line.recv(1000).split(b"\r\n")[0]
    alive(served)


def test_paths_methods_types_models_and_hosts(served: Served) -> None:
    refused(served.get("/v1/nothing"), 404)
    refused(served.get("/v1/chat/completions"), 405)
    refused(served.post(ask(model="gpt-4")), 404, "model", "model_not_found")
    refused(served.post(ask(), **{"content-type": "text/plain"}), 415)
    refused(served.get("/v1/models", host="evil.example"), 403, code="unknown_host")
    refused(served.get("/../../etc/passwd"), 404)
    assert served.get("/health", host=f"localhost:{served.port}").status_code == 200


def test_prompts_of_every_shape(served: Served) -> None:
    def complete(**fields: Any) -> Any:
        return served.post({"model": "tiny", "max_tokens": 2, **fields}, "/v1/completions")

    refused(complete(), 400, "prompt")
    refused(complete(prompt=[10**8]), 400, "prompt")
    refused(complete(prompt=[-1]), 400)
    refused(complete(prompt=[]), 400, "prompt")
    refused(complete(prompt=[[]]), 400, "prompt")
    refused(complete(prompt=["a"] * 5), 400, "n")
    refused(complete(prompt="a", n=2, best_of=1), 400, "best_of")
    refused(complete(prompt="a", best_of=2, stream=True), 400, "best_of")
    refused(complete(prompt="a", echo=True, logprobs=1), 400, "echo")
    assert complete(prompt="a").status_code == 200
    assert complete(prompt=[97]).status_code == 200


def test_keys(serve: Callable[..., Served]) -> None:
    served = serve("karakuri", "--api-key", "one", "--api-key", "zwei-ü")
    for path in ("/v1/models", "/metrics"):
        for wrong in ({}, {"authorization": "Bearer on"}, {"authorization": "Bearer onee"}, {"authorization": "Basic one"}):
            refused(served.get(path, **wrong), 401, code="invalid_api_key")
        assert served.get(path, authorization="Bearer one").status_code == 200
    assert served.get("/v1/models", authorization="bearer one").status_code == 200
    refused(served.post(ask()), 401)
    assert served.get("/health").status_code == 200
    assert served.get("/").status_code == 200
    assert "one" not in served.log.read_text()


def test_a_stranger_on_the_line_does_not_stop_the_others(served: Served) -> None:
    """Half a request, and one that says nothing."""
    lines = [socket.create_connection(("127.0.0.1", served.port), timeout=WAIT) for _ in range(20)]
    for line in lines[:10]:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
        )
    alive(served)
    for line in lines:
        line.close()
    alive(served)


def test_deep_values_inside_messages_and_tools(served: Served) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps(DEEP)}}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "x"}]
    answer = served.post(ask(messages=messages))
    assert answer.status_code in (200, 400), answer.text
    deep = "[" * 20000 + "]" * 20000
    call["function"]["arguments"] = '{"a": ' + deep + "}"  # type: ignore[index]
    refused(served.post(ask(messages=messages)), 400)
    alive(served)


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
MANY = [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(1001)]
WRONG: list[tuple[dict[str, Any], type[openai.APIStatusError]]] = [
    ({"model": "gpt-4"}, openai.NotFoundError),
    ({"messages": [{"role": "user", "content": "a" * 5000}]}, openai.BadRequestError),
    ({"temperature": -1}, openai.BadRequestError),
    ({"max_completion_tokens": 10**18}, openai.BadRequestError),
    ({"seed": -(2**200)}, openai.BadRequestError),
    ({"messages": [{"role": "user", "content": "a" * 10_000_000}]}, openai.APIStatusError),
    (schema({"$ref": "#"}), openai.BadRequestError),
    (schema({"$defs": {"node": NODE}, "$ref": "#/$defs/node"}), openai.BadRequestError),
    (schema({"type": "string", "allOf": [{"type": "integer"}]}), openai.BadRequestError),
    ({"extra_body": {"regex": "(a?){5000}a{5000}"}}, openai.BadRequestError),
    ({"messages": MANY}, openai.BadRequestError),
    ({"tools": [TOOL, TOOL]}, openai.BadRequestError),
]


@pytest.mark.parametrize("stream", [False, True])
def test_every_mistake_is_an_error_of_the_official_client_and_the_next_request_is_served(served: Served, stream: bool) -> None:
    """A stream's mistake too comes as a status, before the first event."""
    client = served.client()
    for fields, kind in WRONG:
        with pytest.raises(kind) as told:
            client.chat.completions.create(**{**ask(), **fields}, stream=stream)
        assert 400 <= told.value.status_code < 500, fields
        assert told.value.body["message"]  # type: ignore[index]
        assert client.chat.completions.create(**ask()).usage.completion_tokens <= 3
    assert served.metric("cairn_in_flight") == 0


def test_a_recursive_schema_that_ends_is_served(served: Served) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    form = schema({"$defs": {"node": node}, "$ref": "#/$defs/node"})
    answer = served.post(ask(**{**form, "max_completion_tokens": 60}))
    assert answer.status_code == 200, answer.text
    value = json.loads(answer.json()["choices"][0]["message"]["content"])
    while "next" in value:
        value = value["next"]
    assert value == {}


def test_callers_who_leave_in_a_crowd_cost_the_others_nothing(serve: Callable[..., Served]) -> None:
    served = serve("endless")
    # Greedy: what is drawn would end by itself before anybody can leave.
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "temperature": 0, "max_completion_tokens": 60}
    want = served.client().chat.completions.create(**asked).choices[0].message.content
    got: list[Any] = []

    def stay() -> None:
        got.append(served.client().chat.completions.create(**asked).choices[0].message.content)

    def leave() -> None:
        stream = served.client().chat.completions.create(**{**asked, "max_completion_tokens": 16000}, stream=True)
        for _, _ in zip(range(3), stream, strict=False):
            pass
        stream.close()

    threads = [threading.Thread(target=stay if i % 3 == 0 else leave) for i in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want] * 6
    until = time.monotonic() + WAIT
    while served.metric("cairn_in_flight") or served.metric("cairn_engine_running"):
        assert time.monotonic() < until, "somebody is still being answered"
        time.sleep(0.05)
    assert served.metric('cairn_answers_total{reason="cancelled"}') == 12
    assert served.client().chat.completions.create(**asked).choices[0].message.content == want
