"""Errors in OpenAI's shape. Knows no route."""

from __future__ import annotations

import re
from typing import Any

from cairn.errors import UserError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a caller is told instead of an answer.

    Args:
        status: the HTTP status.
        message: what is wrong and what to do.
        param: the field of the body.
        code: a word for programs, such as `context_length_exceeded`.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        # A caller's text may come back in the message: bounded, and without lone surrogates, which no JSON body can carry.
        message = self.message[:2000].encode("utf-8", "replace").decode()
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        return {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}, 503: {"retry-after": "5"}}.get(self.status, {})


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Status 400."""
    return ApiError(400, message, param=param, code=code)


def from_user_error(error: UserError, param: str | None = None) -> ApiError:
    """A mistake that the rooms below found in what the caller sent."""
    # Some errors name a field of the body, others a request's number or a format, which tell the caller nothing.
    field = re.match(r"(messages|tools|attributes)\b[^\s,]*", error.where)
    told = f"{error.what}. {error.remedy[:1].upper()}{error.remedy[1:]}" if error.remedy else error.what
    return bad(told, field.group() if field else param)


INTERNAL = ApiError(500, "the server failed on this request; its log says why", code="internal_error")
"""What is told where the mistake is ours: no detail leaves the server."""
