"""What every HTTP request passes first: the key, the host's name, whether the server is ending. Knows no route's inside."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from cairn.serve.errors import ApiError
from cairn.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = frozenset({"/", "/health", "/app.js", "/style.css", "/view.js"})
"""Paths that need no key: the page asks for it, and holds no secret."""
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
}


def digest(key: str) -> bytes:
    """Keys are compared as digests of equal length: the time tells neither a key's length nor its beginning."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """An ASGI application around another one.

    Args:
        app: the application.
        keys: the API keys, one of which a caller must show; none lets everybody in.
        hosts: names that the header `Host` may give, without port; None allows all. A server on the loopback interface without a
            key names its own: else a page of a stranger's site whose name resolves to 127.0.0.1 could read answers.
        metrics: counts requests.
        paths: the known routes.
        ending: whether the server is about to end.
    """

    def __init__(
        self, app: Any, *, keys: Sequence[str], hosts: frozenset[str] | None, metrics: Metrics, paths: frozenset[str],
        ending: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._app, self._keys, self._hosts, self._metrics = app, [digest(key) for key in keys], hosts, metrics
        self._paths, self._ending = paths, ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no route here speaks anything else; uvicorn closes the connection
        status = 500
        number = secrets.token_hex(8).encode()

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number), *_HEADERS.items()]
            await send(message)

        try:
            refused = self._refused(scope)
            if refused is not None:
                response = JSONResponse(refused.body, refused.status, headers=refused.headers)
                await response(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        finally:
            path = scope["path"]
            self._metrics.request(path if path in self._paths else "other", status)

    def _refused(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = host[: host.rindex("]") + 1] if "]" in host else host.partition(":")[0]
        if self._hosts is not None and name.lower() not in self._hosts:
            return ApiError(403, f"this server does not answer for the host '{name[:100]}'", code="unknown_host")
        if self._keys and scope["path"] not in OPEN and not self._shown(headers.get("authorization", "")):
            return ApiError(401, "give the API key as 'Authorization: Bearer KEY'", code="invalid_api_key")
        if self._ending() and scope["method"] == "POST":
            return ApiError(503, "the server is ending", code="server_ending")
        return None

    def _shown(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        given = digest(key.strip() if scheme.lower() == "bearer" else "")
        # Every key is compared, so that the time does not tell which one it was.
        return sum(hmac.compare_digest(given, known) for known in self._keys) > 0
