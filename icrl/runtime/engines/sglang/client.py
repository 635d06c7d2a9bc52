"""One server over HTTP: bytes in, bytes out, and every failure as an `EngineError` that says what the server said.

SGLang's server closes a connection that was idle for 5 seconds, and may do so while the next request is already on
its way. A request that dies so, on a connection that was used before and without one byte of a reply, is sent once
more on a fresh connection; nothing else is sent twice here.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import aiohttp
import msgspec
from yarl import URL

from icrl.errors import ConfigError, EngineError
from icrl.runtime.engines.sglang.refusal import retryable, said

__all__ = ["BrokenReply", "Client", "Reply"]

KEEP_ALIVE_S = 4.0
"""Idle connections are dropped after this, before the server drops them after 5 seconds."""

CONNECT_S = 10.0
"""A server that does not take a connection for this long is unreachable."""

LARGE_BYTES = 1 << 20
"""From here on a body is sent in pieces."""

NOTHING: Mapping[str, Any] = {}

_encode = msgspec.json.Encoder().encode

_reused: ContextVar[bool] = ContextVar("_reused", default=False)


class BrokenReply(EngineError):
    """The connection broke or stalled after the request had been sent; the server may or may not have acted on it."""


class Reply:
    """The body of a reply, in pieces of any size as they arrive."""

    __slots__ = ("_read", "_where")

    def __init__(self, reply: aiohttp.ClientResponse, where: str) -> None:
        self._read = reply.content.readany
        self._where = where

    def __aiter__(self) -> Reply:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broken(self._where, error) from error
        if not piece:
            raise StopAsyncIteration
        return piece


class Client:
    """A server's address and its connections, of which there may be any number.

    Args:
        address: `http://host:port`.
        api_key: Sent as a bearer token.

    Raises:
        ConfigError: The address is none.

    Example:
        >>> Client("127.0.0.1:30000")
        Traceback (most recent call last):
        icrl.errors.ConfigError: address: '127.0.0.1:30000' needs a scheme; write 'http://127.0.0.1:30000'
    """

    def __init__(self, address: str, *, api_key: str | None = None) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"address: {address!r} needs a scheme; write 'http://{address}'")
        self.address = address.rstrip("/")
        """Where the server is, without a slash at the end."""
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._urls: dict[str, URL] = {}
        self._timeouts: dict[tuple[float | None, float | None], aiohttp.ClientTimeout] = {}
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._closed = False

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
        reply = await self._send("POST", path, payload, self._timeout(timeout_s, stall_s))
        try:
            yield Reply(reply, self.address)
        finally:
            reply.close() if reply.content.at_eof() is False else reply.release()

    async def aclose(self) -> None:
        """Close all connections; requests that are under way fail."""
        self._closed = True
        for session in self._sessions.values():
            await session.close()

    async def _whole(self, method: str, path: str, payload: bytes | None, timeout_s: float) -> bytes:
        reply = await self._send(method, path, payload, self._timeout(timeout_s, None))
        try:
            return await reply.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broken(self.address, error) from error

    async def _send(
        self, method: str, path: str, payload: bytes | None, patience: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of a reply that is not a refusal."""
        _reused.set(False)
        try:
            try:
                reply = await self._request(method, path, payload, patience, fresh=False)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not _reused.get() or self._closed:
                    raise
                reply = await self._request(method, path, payload, patience, fresh=True)
            if reply.status >= 400:
                raise EngineError(
                    said(await reply.read()),
                    engine=self.address,
                    status=reply.status,
                    retryable=retryable(reply.status),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise EngineError(
                f"cannot be reached: {error or type(error).__name__}", engine=self.address, retryable=True
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broken(self.address, error) from error
        return reply

    async def _request(
        self,
        method: str,
        path: str,
        payload: bytes | None,
        patience: aiohttp.ClientTimeout,
        *,
        fresh: bool,
    ) -> aiohttp.ClientResponse:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self.address + path, encoded=True)
        session = self._session(fresh)
        return await session.request(method, url, data=_piecewise(payload), headers=self._headers, timeout=patience)

    def _session(self, fresh: bool) -> aiohttp.ClientSession:
        """Open a session at first use, when there is a loop; a `fresh` one uses every connection once."""
        if self._closed:
            raise EngineError("is closed", engine=self.address)
        session = self._sessions.get(fresh)
        if session is None:
            session = self._sessions[fresh] = _open(fresh)
        return session

    def _timeout(self, timeout_s: float | None, stall_s: float | None) -> aiohttp.ClientTimeout:
        key = (timeout_s, stall_s)
        timeout = self._timeouts.get(key)
        if timeout is None:
            timeout = aiohttp.ClientTimeout(total=timeout_s, sock_read=stall_s, sock_connect=CONNECT_S)
            if len(self._timeouts) < 64:
                self._timeouts[key] = timeout
        return timeout


class _Connector(aiohttp.TCPConnector):
    """Connections without a limit, each of which knows whether it was used before.

    (Tracing tells that too, and costs 15 µs a request.)
    """

    def __init__(self, *, fresh: bool) -> None:
        super().__init__(limit=0, force_close=fresh, keepalive_timeout=None if fresh else KEEP_ALIVE_S)
        self._seen: WeakSet[Any] = WeakSet()

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Take a connection, and note in the context whether it was used before."""
        connection = await super().connect(*args, **kwargs)
        protocol = connection.protocol
        if protocol in self._seen:
            _reused.set(True)
        elif protocol is not None:
            self._seen.add(protocol)
        return connection


def _open(fresh: bool) -> aiohttp.ClientSession:
    """Open a session without cookies and proxies; a `fresh` one uses every connection once."""
    return aiohttp.ClientSession(
        connector=_Connector(fresh=fresh),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
    )


def _piecewise(payload: bytes | None) -> bytes | io.BytesIO | None:
    """Let weights be sent in pieces between which the loop does other things."""
    return payload if payload is None or len(payload) < LARGE_BYTES else io.BytesIO(payload)


def _broken(address: str, error: BaseException) -> BrokenReply:
    what = "no answer in time" if isinstance(error, TimeoutError) else "the connection broke"
    detail = str(error) or type(error).__name__
    return BrokenReply(f"{what}: {detail}", engine=address, retryable=True)
