"""An MCP server behind an address, bounded in what it may answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2
from mcp.client.streamable_http import streamable_http_client

__all__ = ["http_transport"]

MAX_RESPONSE_BYTES = 32 << 20
"""A response to a request that is longer is refused."""
CONNECT_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 300.0
"""Bounds one silence of a stream; calls have deadlines of their own."""


def http_transport(url: str, *, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Any]:
    """Describe a connection by streamable HTTP; proxies that the environment names are not used.

    Reads certificates (blocking), and needs no event loop before the block is entered.

    Args:
        url: The server's endpoint.
        headers: Sent with every request, for example for authorisation.
    """
    timeout = httpx2.Timeout(CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
    return _connect(url, httpx2.AsyncClient(headers=dict(headers), timeout=timeout, transport=_Bounded()))


@asynccontextmanager
async def _connect(url: str, client: httpx2.AsyncClient) -> AsyncIterator[Any]:
    async with (
        client,
        streamable_http_client(url, http_client=client, max_sse_event_size=MAX_RESPONSE_BYTES) as streams,
    ):
        yield streams


class _Bounded(httpx2.AsyncHTTPTransport):
    """Ends responses that are too long; the stream of notifications is opened by GET and may be endless."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if request.method == "POST":
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _BoundedStream(response.stream)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        async for chunk in self._stream:
            seen += len(chunk)
            if seen > MAX_RESPONSE_BYTES:
                raise httpx2.StreamError(f"the response is longer than {MAX_RESPONSE_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
