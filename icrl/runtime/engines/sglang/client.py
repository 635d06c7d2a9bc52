"""One server over HTTP: bytes in, bytes out, and every failure as an `EngineError` that says what the server said.

SGLang's server closes a connection that was idle for 5 seconds, and may do so while the next request is already on
its way. A request that dies so, on a connection that was used before and without one byte of a reply, is sent once
more on a fresh connection; nothing else is sent twice here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from icrl.errors import EngineError
from icrl.runtime.engines.sglang.connection import Connection, MalformedReply, Unanswered
from icrl.runtime.engines.sglang.connections import Connections
from icrl.runtime.engines.sglang.endpoint import Endpoint
from icrl.runtime.engines.sglang.refusal import retryable, said

__all__ = ["BrokenReply", "Client", "Reply"]

NOTHING: Mapping[str, Any] = {}

_encode = msgspec.json.Encoder().encode


class BrokenReply(EngineError):
    """The connection broke or stalled after the request had been sent; the server may or may not have acted on it."""


class Reply:
    """The body of a reply, in pieces of any size as they arrive."""

    __slots__ = ("_read", "_where")

    def __init__(self, connection: Connection, where: str) -> None:
        self._read = connection.read
        self._where = where

    def __aiter__(self) -> Reply:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._read()
        except (OSError, MalformedReply) as error:
            raise _broken(self._where, error) from error
        if not piece:
            raise StopAsyncIteration
        return piece


class Client:
    """A server's address and its connections, of which there may be any number.

    Args:
        address: `http://host:port` or `https://…`, perhaps with a path that goes before all others.
        api_key: Sent as a bearer token.

    Raises:
        ConfigError: The address is none, or the key cannot be sent.

    Example:
        >>> Client("127.0.0.1:30000")
        Traceback (most recent call last):
        icrl.errors.ConfigError: address: '127.0.0.1:30000' needs a scheme; write 'http://127.0.0.1:30000'
    """

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        self._endpoint = Endpoint(address, api_key)
        self._connections = Connections(self._endpoint)
        self.address = self._endpoint.address
        """Where the server is, without a slash at the end."""

    async def get(self, path: str, *, timeout_s: float) -> bytes:
        """Read `path`.

        Raises:
            EngineError: The server refuses, does not answer in time, or cannot be reached.
            BrokenReply: The connection broke, or the time was over, before the whole reply was here.
        """
        return await self._whole("GET", path, None, timeout_s)

    async def post(self, path: str, payload: Mapping[str, Any] | bytes = NOTHING, *, timeout_s: float) -> bytes:
        """Send a JSON object, or the bytes of one, and return the bytes of the reply.

        Raises:
            EngineError: The server refuses or cannot be reached.
            BrokenReply: The connection broke, or the time was over, before the whole reply was here.
        """
        return await self._whole("POST", path, payload if isinstance(payload, bytes) else _encode(payload), timeout_s)

    @asynccontextmanager
    async def stream(
        self, path: str, payload: bytes, *, timeout_s: float | None = None, stall_s: float | None = None
    ) -> AsyncIterator[Reply]:
        """Send the bytes of a JSON object and hand out the reply as it arrives.

        Args:
            path: What to ask.
            payload: The object.
            timeout_s: Seconds for the whole reply.
            stall_s: Seconds without a byte until the reply counts as broken.

        Raises:
            EngineError: The server refuses or cannot be reached.
            BrokenReply: The reply stopped or broke off; also raised by the iteration.
        """
        connection = await self._ask("POST", path, payload, timeout_s, stall_s, streamed=True)
        reply = Reply(connection, self.address)
        try:
            if connection.status >= 300:
                raise self._refusal(connection, b"".join([piece async for piece in reply]))
            yield reply
        finally:
            self._connections.give_back(connection)

    async def aclose(self) -> None:
        """Close all connections; requests that are under way fail."""
        await self._connections.aclose()

    async def _whole(self, method: str, path: str, payload: bytes | None, timeout_s: float) -> bytes:
        connection = await self._ask(method, path, payload, timeout_s, None, streamed=False)
        data = await connection.read()
        self._connections.give_back(connection)
        if connection.status >= 300:
            raise self._refusal(connection, data)
        return data

    async def _ask(
        self,
        method: str,
        path: str,
        payload: bytes | None,
        timeout_s: float | None,
        stall_s: float | None,
        *,
        streamed: bool,
    ) -> Connection:
        """Send a request and wait for the whole reply, or for its head where it is `streamed`."""
        self._connections.require_open()
        loop = asyncio.get_running_loop()
        until = math.inf if timeout_s is None else loop.time() + timeout_s
        head, body = self._endpoint.head(method, path, None if payload is None else len(payload)), payload or b""
        connection = self._connections.take(loop)
        try:
            if connection is not None:
                try:
                    await connection.ask(head, body, until=until, stall_s=stall_s, streamed=streamed)
                    return connection
                except Unanswered:  # the server closed it when the request was on its way
                    self._connections.require_open()
            connection = await self._connections.open(until)
            await connection.ask(head, body, until=until, stall_s=stall_s, streamed=streamed)
        except (OSError, MalformedReply) as error:
            raise _broken(self.address, error) from error
        return connection

    def _refusal(self, connection: Connection, data: bytes) -> EngineError:
        """Make an error of a reply with another status than success. No redirect is followed: the key stays here."""
        message, status = said(data), connection.status
        if status < 400:
            message = f"leads to {connection.location or 'another address'}; give the address that answers itself"
        return EngineError(message, engine=self.address, status=status, retryable=retryable(status))


def _broken(address: str, error: Exception) -> BrokenReply:
    if isinstance(error, MalformedReply):
        what = "a malformed reply"
    else:
        what = "no answer in time" if isinstance(error, TimeoutError) else "the connection broke"
    return BrokenReply(f"{what}: {str(error) or type(error).__name__}", engine=address, retryable=True)
