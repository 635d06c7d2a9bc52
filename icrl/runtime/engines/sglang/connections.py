"""The connections to one server: opened when there is none to use again, without a limit, dropped when idle."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from icrl.errors import EngineError
from icrl.runtime.engines.sglang.connection import Connection
from icrl.runtime.engines.sglang.endpoint import Endpoint

__all__ = ["CONNECT_S", "KEEP_ALIVE_S", "Connections"]

KEEP_ALIVE_S = 4.0
"""Idle connections are dropped after this, before the server drops them after 5 seconds."""

CONNECT_S = 10.0
"""A server that does not take a connection for this long is unreachable."""

EITHER_S = 0.25
"""How long one address of a name may take before the next one is tried as well."""

CLOSE_S = 1.0
"""How long the loop may take to close what was aborted."""


class Connections:
    """The connections to a server.

    They belong to the event loop that runs when they are opened; under another loop, others are opened.

    Args:
        endpoint: Where the server is.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._loop: asyncio.AbstractEventLoop | None = None
        self._all: set[Connection] = set()
        self._idle: dict[Connection, None] = {}
        self._opening: set[asyncio.Timeout] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()
        self.closed = False
        """Whether nothing may be asked any more."""

    def take(self, loop: asyncio.AbstractEventLoop) -> Connection | None:
        """Return the connection that was used last, unless none is fresh enough."""
        if loop is not self._loop:
            self._loop, self._sweeper = loop, None
            for those in (self._all, self._idle, self._opening):
                those.clear()
        oldest = loop.time() - KEEP_ALIVE_S
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def open(self, until: float) -> Connection:
        """Return a new connection.

        Args:
            until: When it must be there, by the loop's clock, if that is sooner than `CONNECT_S`.

        Raises:
            EngineError: The server cannot be reached.
        """
        self.require_open()
        loop, endpoint = asyncio.get_running_loop(), self._endpoint
        either: dict[str, Any] = {}  # uvloop knows no such thing: it tries one address after the other
        if endpoint.named and isinstance(loop, asyncio.BaseEventLoop):
            either = {"happy_eyeballs_delay": EITHER_S}
        try:
            async with asyncio.timeout_at(min(until, loop.time() + CONNECT_S)) as limit:
                self._opening.add(limit)
                try:
                    _, connection = await loop.create_connection(
                        lambda: Connection(loop, self._lose), endpoint.host, endpoint.port, ssl=endpoint.tls, **either
                    )
                finally:
                    self._opening.discard(limit)
        except OSError as error:
            self.require_open()
            message = str(error) or "no connection in time"
            raise EngineError(f"cannot be reached: {message}", engine=endpoint.address, retryable=True) from error
        if self.closed:
            connection.abort()
            self.require_open()
        if not connection.ended:
            self._all.add(connection)
        return connection

    def require_open(self) -> None:
        """Refuse to go on after `aclose`.

        Raises:
            EngineError: It was called.
        """
        if self.closed:
            raise EngineError("is closed", engine=self._endpoint.address)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request, or end it where a reply is incomplete or was the last one."""
        loop = self._loop
        if loop is None or connection not in self._all or not connection.reusable:  # not in: of an earlier loop
            connection.abort()
            return
        connection.idle_since = loop.time()
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = loop.call_later(KEEP_ALIVE_S, self._sweep, loop)

    async def aclose(self) -> None:
        """End all connections; requests that are under way fail."""
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in (*self._all,):
            connection.fail(ConnectionAbortedError("the client was closed"))
        if self._loop is not asyncio.get_running_loop():
            return
        for limit in self._opening:
            if not limit.expired():
                limit.reschedule(0)
        if self._all:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._gone.wait()

    def _lose(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._all.discard(connection)
        if self.closed and not self._all:
            self._gone.set()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has been idle for too long, and look again when the next one will have been."""
        oldest = loop.time() - KEEP_ALIVE_S
        self._sweeper = None
        for connection in (*self._idle,):
            if connection.idle_since > oldest:
                self._sweeper = loop.call_at(connection.idle_since + KEEP_ALIVE_S, self._sweep, loop)
                break
            del self._idle[connection]
            connection.close()
