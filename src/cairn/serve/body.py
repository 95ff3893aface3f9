"""A request's body: bytes within bounds, strict JSON, plain values. Knows no field."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from cairn.serve.config import Limits
from cairn.serve.errors import ApiError, bad

MAX_DEPTH = 64
"""Values nested more deeply are refused: what walks them later calls itself once a level."""


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object that a request carries; keys whose value is null are left out, as if they were not there.

    Raises:
        ApiError: too large, too slow, not JSON, no object, or nested too deeply.
    """
    # A page of another site can post text/plain to a server on this machine without asking; with JSON the browser asks first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the content type is '{kind[:60]}'; send application/json")
    try:
        async with asyncio.timeout(limits.body_seconds):
            data = await _read(request, limits.max_body_bytes)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {limits.body_seconds:g} s", code="timeout") from None
    except ClientDisconnect:
        raise ApiError(499, "the client has gone") from None
    value = parse(data)
    if not isinstance(value, dict):
        raise bad("the body must be a JSON object")
    return {key: inner for key, inner in value.items() if inner is not None}


async def _read(request: Request, most: int) -> bytes:
    announced = request.headers.get("content-length", "")
    too_large = ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")
    if announced.isdigit() and int(announced[:20]) > most:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def parse(data: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN, no lone surrogates, at most `MAX_DEPTH` levels.

    Raises:
        ApiError: anything else.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise bad(f"the body is nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise bad(f"the body is not valid JSON: {error}") from None
    except ValueError as error:
        # Python's own refusal of a number with thousands of digits names a setting of Python, which is no help to a caller.
        raise bad(f"the body is not valid JSON: {str(error).partition(':')[0]}") from None
    _check(value, surrogates=b"\\ud" in data.lower())
    return value


def _check(value: Any, surrogates: bool) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
                inner += item.keys() if surrogates else ()
            elif isinstance(item, list):
                inner += item
            elif surrogates and isinstance(item, str):
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise bad("the body holds a lone surrogate, which is not Unicode") from None
        if not inner:
            return
        level = inner
    raise bad(f"the body is nested more than {MAX_DEPTH} levels deep")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
