"""One JSON line a request: who, what, how long, which trajectories; never what was written."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from icrl.serve.backlog import LineWriter
from icrl.serve.keys import CALLER, REQUEST_ID, TRAJECTORIES

__all__ = ["access_log"]

MAX_PATH_CHARS = 200
_ENCODER = msgspec.json.Encoder()


def access_log(lines: LineWriter) -> Middleware:
    """Return a middleware that writes a line when a request is over, also when its client vanished.

    Args:
        lines: Where to write.
    """

    @web.middleware
    async def logged(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        response: web.StreamResponse | None = None
        try:
            response = await handler(request)
            return response
        finally:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": request[REQUEST_ID],
                "caller": request.get(CALLER, ""),
                "remote": request.remote,
                "method": request.method,
                "path": _printable(request.path),
                "status": None if response is None else response.status,
                "bytes": None if response is None else _length(response),
                "wall_s": round(time.monotonic() - started, 6),
                "trajectories": request.get(TRAJECTORIES, []),
            }
            lines.write(_ENCODER.encode(line))

    return logged


def _printable(path: str) -> str:
    """Cut a path that a client made up, and make sure that it can be encoded."""
    return path[:MAX_PATH_CHARS].encode("utf-8", "backslashreplace").decode()


def _length(response: web.StreamResponse) -> int | None:
    """Bytes of what was streamed already, or of the body that will be sent."""
    return response.body_length if response.prepared else response.content_length
