"""Server-sent events with back-pressure: what is told faster than a client reads is written together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from time import monotonic
from typing import Any, Generic, Self, TypeVar

import msgspec
from aiohttp import web

from icrl.serve.keys import CONFIG, REQUEST_ID

__all__ = ["HEARTBEAT", "EventStream", "Mailbox", "encode_event", "send"]

HEARTBEAT = b": still working\n\n"
"""A comment, which clients skip; it keeps proxies from closing a silent connection."""

_ENCODE = msgspec.json.Encoder().encode
_LOG = logging.getLogger("icrl.serve")
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
        with Watchdog(heartbeat_s, self._ring) as silence:
            while True:
                if not self._items and not self._closed:
                    silence.begins()
                    self._wake = silence.loop.create_future()
                    await self._wake
                    silence.ends()
                batch, self._items = self._items, []
                if not batch and self._closed:
                    return
                yield batch


class Watchdog:
    """Calls a function whenever something takes too long; far cheaper than a timer for each time.

    Args:
        limit_s: Seconds that are too long.
        bark: What to call, each time once.
    """

    def __init__(self, limit_s: float, bark: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        """The loop that it watches on."""
        self._limit_s = limit_s
        self._bark = bark
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begins(self) -> None:
        """Say that it begins."""
        self._since = monotonic()
        if self._timer is None:
            self._timer = self.loop.call_later(self._limit_s, self._look)

    def ends(self) -> None:
        """Say that it is over."""
        self._since = None

    def __enter__(self) -> Self:
        """Watch while the block runs."""
        return self

    def __exit__(self, *error: object) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Bark if it is time to; the next look is when it could be time again."""
        self._timer = None
        if self._since is None:
            return
        left_s = self._since + self._limit_s - monotonic()
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._look)
        else:
            self._since = None
            self._bark()


class EventStream:
    """One response in flight.

    Args:
        request: The request to answer.
        write_timeout_s: Seconds that the client may take to read what was written.
    """

    def __init__(self, request: web.Request, *, write_timeout_s: float) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=_HEADERS)
        self._unread = Watchdog(write_timeout_s, self._cut)

    @property
    def response(self) -> web.StreamResponse:
        """What the handler returns."""
        return self._response

    async def begin(self, headers: dict[str, str]) -> None:
        """Send the status line; from here on errors have to become events."""
        self._response.headers.update(headers)
        await self._response.prepare(self._request)

    async def write(self, payload: bytes) -> None:
        """Write whole events.

        Raises:
            ConnectionError: The client is gone.
            CancelledError: It did not read for too long, and its connection was cut.
        """
        self._unread.begins()
        await self._response.write(payload)
        self._unread.ends()

    async def end(self) -> None:
        """Finish the response.

        Raises:
            ConnectionError: As for `write`.
            CancelledError: As for `write`.
        """
        self._unread.begins()
        await self._response.write_eof()
        self._unread.ends()

    def watched(self) -> Watchdog:
        """Return the context in which everything is written."""
        return self._unread

    def _cut(self) -> None:
        """End the connection of a client that does not read; the server then cancels the request."""
        if (transport := self._request.transport) is not None:
            transport.abort()


async def send(
    request: web.Request, payloads: AsyncGenerator[bytes, None], *, failed: Callable[[], bytes]
) -> web.StreamResponse:
    """Answer with a stream; once its status line is out, whatever breaks becomes a last event.

    Args:
        request: The request.
        payloads: Whole events, as they happen.
        failed: Writes the events that end a stream because the server failed.
    """
    stream = EventStream(request, write_timeout_s=request.app[CONFIG].admission.write_timeout_s)
    try:
        with stream.watched():
            await stream.begin({"X-Request-Id": request[REQUEST_ID]})
            try:
                async with aclosing(payloads):
                    async for payload in payloads:
                        await stream.write(payload)
            except ConnectionError:
                raise
            except Exception:
                _LOG.exception("request %s failed while it was streamed", request[REQUEST_ID])
                await stream.write(failed())
            await stream.end()
    except ConnectionError:  # nobody reads any more
        _LOG.debug("request %s: its client is gone", request[REQUEST_ID])
    return stream.response
