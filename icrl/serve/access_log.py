"""One JSON line a request: who, what, how long, which trajectories; never what was written."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TextIO

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from icrl.serve.keys import CALLER, REQUEST_ID, TRAJECTORIES

__all__ = ["access_log"]

_ENCODER = msgspec.json.Encoder()


def access_log(out: TextIO | None = None) -> Middleware:
    """Return a middleware that writes a line when a request is over, also when its client vanished.

    Args:
        out: Where to write; standard error if not given.
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
                "path": request.path[:200],
                "status": None if response is None else response.status,
                "bytes": None if response is None else response.body_length or response.content_length,
                "wall_s": round(time.monotonic() - started, 6),
                "trajectories": request.get(TRAJECTORIES, []),
            }
            print(_ENCODER.encode(line).decode(), file=out or sys.stderr, flush=True)

    return logged
