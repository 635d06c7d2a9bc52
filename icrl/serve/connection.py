"""Connections with bounds of their own: how many there are, and how long a client may take to send and to read.

aiohttp bounds the sizes of what a client sends, and closes connections on which nothing happens. It does not bound the
time that a request's head takes, nor the time that a client takes to read an answer, and it explains malformed requests
in its own words and in the log; here, all of that is done.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from icrl.serve.config import AdmissionConfig
from icrl.serve.problem import Problem

__all__ = ["Connection", "Door"]

MIN_BYTES_PER_S = 256
"""A client that reads more slowly than this is taken for one that does not read."""
_LOG = logging.getLogger("icrl.serve")


class Connection(RequestHandler):
    """One client's connection.

    Args:
        server: Hands requests to the application.
        loop: The event loop.
        admission: The bounds.
        options: As for `aiohttp.web.Server`.
    """

    __slots__ = ("_admission", "_head", "_reading", "_socket", "_unread")

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        admission: AdmissionConfig,
        **options: Any,
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._admission = admission
        self._head: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._socket: asyncio.Transport | None = None
        self._unread = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the head of the first request; later ones have as long as the connection is kept open."""
        super().connection_made(transport)
        if isinstance(transport, asyncio.Transport):
            self._socket = transport
            # Whatever the client does not take at once is noticed.
            transport.set_write_buffer_limits(high=0)
        self._head = asyncio.get_running_loop().call_later(self._admission.header_timeout_s, self.force_close)

    def begun(self) -> None:
        """Hear that a request's head is here."""
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the timers."""
        for timer in (self._head, self._reading):
            if timer is not None:
                timer.cancel()
        self._head = self._reading = self._socket = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to watch whether the client reads what the system could not take."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Hear that everything is sent."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _watch(self) -> None:
        if self._socket is not None:
            self._unread = self._socket.get_write_buffer_size()
            timeout_s = self._admission.write_timeout_s
            self._reading = asyncio.get_running_loop().call_later(timeout_s, self._look, MIN_BYTES_PER_S * timeout_s)

    def _look(self, enough: float) -> None:
        if self._socket is None:
            return
        if self._unread - self._socket.get_write_buffer_size() < enough:
            _LOG.info("a client that does not read is cut off")
            self._socket.abort()
        else:
            self._watch()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, in the protocol's words; what was sent may hold a key, so no log shows it."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if status < 500:
            _LOG.debug("a malformed request: %s", type(exc).__name__)
            problem = Problem(400, "this is no valid HTTP request", code="invalid_http")
        else:
            _LOG.error("a request failed outside of the application", exc_info=exc)
            problem = Problem(500, "the server failed", type="server_error", code="internal_error")
        response = problem.response()
        response.headers["Server"] = "icrl"
        response.force_close()
        return response


class _TurnedAway(asyncio.Protocol):
    """A connection for which there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so, and close."""
        if isinstance(transport, asyncio.Transport):
            busy = "the server has too many connections; try again"
            body = Problem(503, busy, type="server_error", code="too_many_connections").body()
            head = (
                "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            transport.write(head.encode() + body)
            transport.close()


class Door:
    """Makes the protocol of every new connection, as long as there is room.

    Args:
        runner: The application, set up.
        admission: The bounds.
        keepalive_s: Seconds that a connection is kept open between requests.

    Raises:
        RuntimeError: The application is not set up.
    """

    def __init__(self, runner: web.AppRunner, admission: AdmissionConfig, *, keepalive_s: float) -> None:
        if runner.server is None:
            raise RuntimeError("Door: the runner is not set up")
        self._server = runner.server
        self._admission = admission
        self._keepalive_s = keepalive_s

    def __call__(self) -> asyncio.Protocol:
        """Make a protocol."""
        if len(self._server.connections) >= self._admission.max_connections:
            return _TurnedAway()
        return Connection(
            self._server,
            loop=asyncio.get_running_loop(),
            admission=self._admission,
            keepalive_timeout=self._keepalive_s,
            access_log=None,
            auto_decompress=False,  # a small body can unpack to a huge one
        )
