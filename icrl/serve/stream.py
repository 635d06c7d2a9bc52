"""Server-sent events with back-pressure: what is told faster than a client reads is written together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import web

__all__ = ["EventStream", "Mailbox", "encode_event"]

_ENCODE = msgspec.json.Encoder().encode
_HEARTBEAT = b": still working\n\n"
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

Item = TypeVar("Item")


def encode_event(data: Any, *, event: str | None = None) -> bytes:
    r"""Write one event.

    Example:
        >>> encode_event({"a": 1}, event="x")
        b'event: x\ndata: {"a":1}\n\n'
    """
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + _ENCODE(data) + b"\n\n"


class Mailbox(Generic[Item]):
    """Hands items from callbacks on the event loop to one reader, everything that waits at once.

    It has no bound of its own: a run can only put as much into it as its token limit allows.

    Example:
        >>> async def both() -> list[str]:
        ...     box: Mailbox[str] = Mailbox()
        ...     box.put("a"), box.put("b"), box.close()
        ...     return [item async for batch in box.batches(heartbeat_s=1.0) for item in batch]
        >>> asyncio.run(both())
        ['a', 'b']
    """

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._wake: asyncio.Future[None] | None = None
        self._closed = False

    def put(self, item: Item) -> None:
        """Add an item."""
        self._items.append(item)
        self._ring()

    def close(self) -> None:
        """Let the reader end once it has read everything."""
        self._closed = True
        self._ring()

    def _ring(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def batches(self, *, heartbeat_s: float) -> AsyncIterator[list[Item]]:
        """Yield what has come in since the last time; an empty list after `heartbeat_s` seconds of silence."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._items and not self._closed:
                self._wake = loop.create_future()
                timer = loop.call_later(heartbeat_s, self._ring)
                try:
                    await self._wake
                finally:
                    timer.cancel()
            batch, self._items = self._items, []
            if not batch and self._closed:
                return
            yield batch


class EventStream:
    """One response in flight.

    Args:
        request: The request to answer.
        write_timeout_s: Seconds that the client may take to read what was written.
    """

    def __init__(self, request: web.Request, *, write_timeout_s: float) -> None:
        self._request = request
        self._write_timeout_s = write_timeout_s
        self._response = web.StreamResponse(headers=_HEADERS)

    @property
    def response(self) -> web.StreamResponse:
        """What the handler returns."""
        return self._response

    @property
    def begun(self) -> bool:
        """Whether the status line is out, so that errors have to become events."""
        return self._response.prepared

    async def begin(self, headers: dict[str, str]) -> None:
        """Send the status line."""
        self._response.headers.update(headers)
        await self._response.prepare(self._request)

    async def write(self, payload: bytes) -> None:
        """Write whole events; nothing, a heartbeat.

        Raises:
            TimeoutError: The client did not read for too long; its connection is cut.
            ConnectionError: The client is gone.
        """
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._response.write(payload or _HEARTBEAT)
        except TimeoutError:
            if (transport := self._request.transport) is not None:
                transport.abort()
            raise

    async def end(self) -> None:
        """Finish the response."""
        async with asyncio.timeout(self._write_timeout_s):
            await self._response.write_eof()
