"""The routes: OpenAI's API, health, metrics and the page. Each reads a body, makes a job, runs it and writes what comes.
Knows no engine and no format."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cairn import __version__
from cairn.errors import UserError
from cairn.generate.load import Loaded
from cairn.generate.worker import Worker
from cairn.serve import shapes
from cairn.serve.body import read_json
from cairn.serve.cache import Replay, question
from cairn.serve.config import Limits
from cairn.serve.errors import INTERNAL, ApiError, bad
from cairn.serve.fingerprint import fingerprint
from cairn.serve.gate import OPEN, Gate
from cairn.serve.job import Job, chat_job, completion_job
from cairn.serve.memory import Memory
from cairn.serve.metrics import Metrics
from cairn.serve.protocol import ChatBody, CompletionBody, read
from cairn.serve.running import Running, unless_gone

T = TypeVar("T")
PAGE = {"/": ("index.html", "text/html"), "/app.js": ("app.js", "text/javascript"), "/view.js": ("view.js", "text/javascript"),
        "/style.css": ("style.css", "text/css")}  # fmt: skip
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
"""What the page may load: its own three files and the API. An answer that holds markup can do nothing."""
SLACK = 5.0
"""Seconds that a stream may go on after its request's time, to tell its caller so."""
GONE = 499
"""The status that is counted where the caller went before its answer."""


@dataclass
class Server:
    """A model that is served.

    Attributes:
        name: what callers call it.
        loaded: the model.
        limits: the bounds on callers.
        keys: API keys; none lets everybody in.
        hosts: see `Gate`.
        memory: keeps answers, where that was asked for.
    """

    name: str
    loaded: Loaded
    limits: Limits = field(default_factory=Limits)
    keys: Sequence[str] = ()
    hosts: frozenset[str] | None = None
    memory: Memory | None = None
    worker: Worker = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    in_flight: int = 0
    ending: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    fingerprint: str = field(init=False)
    _quick: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "prompts"))
    _slow: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "constraints"))

    def __post_init__(self) -> None:
        self.fingerprint = fingerprint(self.loaded)

    def app(self) -> Gate:
        """The ASGI application. The engine runs from its start to its end."""

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self.worker = Worker(self.loaded.engine, max_waiting=self.limits.max_in_flight * self.limits.max_choices)
            try:
                yield
            finally:
                await asyncio.to_thread(self.worker.stop, False)
                for pool in (self._quick, self._slow):
                    pool.shutdown(wait=False, cancel_futures=True)

        # FastAPI's own pages for its schema load scripts from elsewhere, so they are off.
        app = FastAPI(title="Cairn", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])
        app.add_api_route("/v1/completions", self._completion, methods=["POST"])
        app.add_api_route("/v1/models", self._models)
        app.add_api_route("/v1/models/{name:path}", self._model)
        app.add_api_route("/health", self._health)
        app.add_api_route("/metrics", self._metrics)
        for path in PAGE:
            app.add_api_route(path, self._page)
        app.add_exception_handler(ApiError, _api_error)
        app.add_exception_handler(HTTPException, _http_error)
        app.add_exception_handler(Exception, _own_error)
        paths = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", *OPEN})
        return Gate(app, keys=self.keys, hosts=self.hosts, metrics=self.metrics, paths=paths, ending=lambda: self.ending)

    # Completions

    async def _chat(self, request: Request) -> Response:
        return await self._complete(request, ChatBody, chat_job)

    async def _completion(self, request: Request) -> Response:
        return await self._complete(request, CompletionBody, completion_job)

    async def _complete(self, request: Request, cls: type[Any], make: Callable[[Loaded, Limits, Any], Job]) -> Response:
        arrived = asyncio.get_running_loop().time()
        deadline = arrived + self.limits.request_seconds
        slot = _Slot(self)
        try:
            body = read(cls, await read_json(request, self.limits))
            self._check_model(body.model)
            source = await self._source(body, make, arrived, deadline)
            told = body.logprobs is not None if isinstance(body, CompletionBody) else body.logprobs
            kind = shapes.Kind(
                isinstance(body, ChatBody), self.name, self.loaded.tokenizer, bool(told), self.loaded.engine.deterministic,
                self.fingerprint, source.told if isinstance(source, Replay) else None,
            )  # fmt: skip
            if body.stream:
                options = body.stream_options
                events = self._events(kind, source, bool(options and options.include_usage))
                # What is wrong before the first token still gets its own status.
                first = await unless_gone(anext(events), _gone(request))
                if first is not None:
                    slot.handed_over = True
                    return _Stream(first, events, deadline + SLACK, slot)
            else:
                response = await unless_gone(self._whole(kind, source), _gone(request))
                if response is not None:
                    return JSONResponse(response)
            return Response(status_code=GONE)
        finally:
            if not slot.handed_over:
                slot.free()

    async def _source(
        self, body: ChatBody | CompletionBody, make: Callable[[Loaded, Limits, Any], Job], arrived: float, deadline: float
    ) -> Running | Replay:
        """Where the answer comes from: the engine, or what was kept of an earlier one."""
        asked = None
        if self.memory is not None:
            asked = question(body)
            found = None if asked is None else self.memory.exact(asked)
            if found is not None:
                self.metrics.looked_up("exact")
                self.metrics.finished("cached", asyncio.get_running_loop().time() - arrived)
                return found
        elif body.cache:
            raise bad("this server keeps no answers; leave cache out", "cache", "unsupported_parameter")
        job = await self._made(partial(make, self.loaded, self.limits, body), _is_constrained(body))
        keep = None
        if asked is not None:
            assert self.memory is not None
            near, vector, refused = await self._made(partial(self.memory.near, asked, job, self.worker), False)
            for _ in range(refused):
                self.metrics.looked_up("refused")
            self.metrics.looked_up("miss" if near is None else "near")
            if near is not None:
                self.metrics.finished("cached", asyncio.get_running_loop().time() - arrived)
                return near
            keep = partial(self.memory.keep, asked, vector)
        return Running(self.worker, job, self.metrics, arrived=arrived, deadline=deadline, on_error=_log, on_whole=keep)

    async def _made(self, make: Callable[[], T], constrained: bool) -> T:
        """What takes long before an answer begins, made in a thread.

        A large prompt or schema must not hold up everybody else's tokens, nor schemas plain prompts.
        """
        try:
            async with asyncio.timeout(self.limits.compile_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._slow if constrained else self._quick, make)
        except TimeoutError:
            seconds = self.limits.compile_seconds
            raise ApiError(503, f"the prompt and its constraint were not ready after {seconds:g} s", code="timeout") from None

    async def _whole(self, kind: shapes.Kind, source: Running | Replay) -> dict[str, Any]:
        deltas: list[list[Any]] = [[] for _ in range(source.count)]
        async with aclosing(source.deltas()) as arriving:
            async for place, delta in arriving:
                deltas[place].append(delta)
        return shapes.whole(kind, [deltas[i] for i in source.kept()], _used(source))

    async def _events(self, kind: shapes.Kind, source: Running | Replay, usage: bool) -> AsyncGenerator[bytes, None]:
        """The stream's events. The first one comes with the first token, or it raises."""
        begun = False
        try:
            async with aclosing(source.deltas()) as arriving:
                async for place, delta in arriving:
                    values = [*([] if begun else shapes.opening(kind, source.count)), *shapes.chunks(kind, place, delta)]
                    begun = True
                    for value in values:
                        yield shapes.event({**value, "usage": None} if usage else value)
            if usage:
                yield shapes.event(shapes.closing(kind, _used(source)))
            yield shapes.event("[DONE]")
        except ApiError as error:
            if not begun:
                raise
            yield shapes.event(error.body)

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise ApiError(404, f"no model '{name[:200]}' here; this server has '{self.name}'", param="model", code="model_not_found")

    # The rest

    async def _models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, name: str) -> Response:
        self._check_model(name)
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        """The model as `/v1/models` tells it; what OpenAI's entry lacks is what the page needs to know."""
        try:
            format = self.loaded.format
            attributes = {name: one.model_dump() for name, one in (format.attributes or {}).items()}
            ours: dict[str, Any] = {"format": format.name, "attributes": attributes, "tools": format.tool_prompt is not None}
        except UserError:
            ours = {"format": None, "attributes": {}, "tools": False}
        about = {"id": self.name, "object": "model", "created": self.created, "owned_by": "cairn"}
        return {**about, "context_length": self.loaded.engine.context, "deterministic": self.loaded.engine.deterministic,
                "system_fingerprint": self.fingerprint, **ours}  # fmt: skip

    async def _health(self) -> Response:
        return JSONResponse({"status": "ending" if self.ending else "ok"}, 503 if self.ending else 200)

    async def _metrics(self) -> Response:
        kept = None if self.memory is None else self.memory.stats()
        text = self.metrics.text(self.worker.stats(), self.in_flight, kept)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _page(self, request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        data = (resources.files("cairn.serve") / "page" / name).read_bytes()
        return Response(data, media_type=kind, headers={"content-security-policy": _POLICY, "cache-control": "no-cache"})


class _Slot:
    """One of the requests in flight; refused where there are too many. Freed once, by whoever ends last."""

    def __init__(self, server: Server) -> None:
        most = server.limits.max_in_flight
        if server.in_flight >= most:
            raise ApiError(429, f"{most} requests are in flight already; try again later", code="too_many_requests")
        self._server, self._freed, self.handed_over = server, False, False
        server.in_flight += 1

    def free(self) -> None:
        """Let another one in."""
        if not self._freed:
            self._freed = True
            self._server.in_flight -= 1


def _used(source: Running | Replay) -> dict[str, Any]:
    return shapes.usage(source.prompt_tokens, source.cached, source.generated)


def _is_constrained(body: ChatBody | CompletionBody) -> bool:
    return body.constrained is not None or (isinstance(body, ChatBody) and bool(body.tools))


async def _gone(request: Request) -> None:
    """Returns when the caller has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """Server-sent events. Whatever ends it (the last event, a caller who left, one who does not read) stops the answer too."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], deadline: float, slot: _Slot) -> None:
        super().__init__(self._parts(first, rest), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._rest, self._deadline, self._slot = rest, deadline, slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    await super().__call__(scope, receive, send)
        finally:
            self._slot.free()
            await self._rest.aclose()

    @staticmethod
    async def _parts(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
        yield first
        async for part in rest:
            yield part


def _log(error: BaseException) -> None:
    print("cairn serve: a request failed by our mistake", file=sys.stderr)
    traceback.print_exception(error)


async def _own_error(_: Request, error: Exception) -> Response:
    return JSONResponse(INTERNAL.body, INTERNAL.status)  # the traceback goes to the log with uvicorn's own line


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, wrong method."""
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, str(error.detail), code="unknown_url" if error.status_code == 404 else None)
    return JSONResponse(told.body, told.status, headers=dict(error.headers or {}))
