"""What a client is told when a request cannot be served, in the shape that OpenAI's clients expect."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from aiohttp import web

__all__ = ["Problem", "engine_failed", "invalid"]


class Problem(Exception):
    """A request ends with an HTTP status and `{"error": {"message", "type", "param", "code"}}`.

    Args:
        status: HTTP status.
        message: What is wrong and what to do, for the client's developer.
        type: OpenAI's class of error.
        param: The field that is wrong, as a path such as `messages[0].role`.
        code: Machine-readable reason.
        retry_after_s: Seconds after which trying again makes sense.

    Example:
        >>> Problem(404, "there is no such response", param="id").body()
        b'{"error":{"message":"there is no such response","type":"invalid_request_error","param":"id","code":null}}'
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the protocol's word
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def error(self) -> dict[str, Any]:
        """Return the inner object; streams send it as an event."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        """Return the JSON body."""
        return msgspec.json.encode({"error": self.error()})

    def response(self) -> web.Response:
        """Return the whole answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return web.Response(status=self.status, body=self.body(), content_type="application/json", headers=headers)


def invalid(param: str | None, message: str, *, code: str | None = None) -> Problem:
    """Return the problem of a field that is wrong.

    Example:
        >>> invalid("top_p", "must be in (0, 1], not 2").status
        400
    """
    return Problem(400, f"{param}: {message}" if param else message, param=param, code=code)


def engine_failed() -> Problem:
    """Return what a client is told when the engine broke; why is in the server's log only.

    Example:
        >>> engine_failed().status
        502
    """
    return Problem(502, "the engine failed while answering", type="server_error", code="engine_error")
