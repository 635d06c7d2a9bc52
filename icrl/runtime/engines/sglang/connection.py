"""One HTTP/1.1 connection to a server, which carries one request after the other.

aiohttp's client costs four times the CPU a request (`benchmarks/run.py rollouts --parts transport`). What is here is
what the client of an engine needs and no more: a request whose body is bytes, a reply that llhttp (`httptools`) parses,
deadlines, and back-pressure both ways.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

__all__ = ["Connection", "MalformedReply", "Unanswered"]

SMALL_BYTES = 1 << 16
"""Bodies up to this size are sent in one write."""

SLICE_BYTES = 1 << 18
"""Larger ones are sent in slices, between which the loop does other things."""

LONGEST_HEAD = 1 << 16
"""Bytes that may come without one of a body among them: the head of a reply, or what frames a chunk."""

UNREAD_BYTES = 1 << 18
"""A streamed reply of which more waits to be read is not received any further."""

KEPT = frozenset({b"content-length", b"transfer-encoding", b"content-encoding", b"location"})


class MalformedReply(Exception):
    """What came is no HTTP reply, or none of a kind that was asked for."""


class Unanswered(ConnectionError):
    """The connection ended before one byte of a reply."""


class Connection(asyncio.Protocol):
    """A connection; whoever uses it gives it back when the reply is complete, and aborts it otherwise.

    Args:
        loop: The running loop.
        lost: Told when the connection is no more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[Connection], None]) -> None:
        self._loop = loop
        self._lost = lost
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._writing = self._reading = True  # neither direction is paused
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fires = math.inf
        self._error: Exception | None = None
        self._complete = True
        self._headed = self._keep = self._streamed = False
        self._pieces: list[bytes] = []
        self._fields: dict[bytes, bytes] = {}
        self._bare = self._unread = 0  # bytes
        self._until = self._deadline = math.inf
        self._stall_s: float | None = None
        self.status = 0
        """Of the last reply."""
        self.idle_since = 0.0
        """When it was given back, by the loop's clock."""
        self.ended = False
        """Whether it is no more."""

    @property
    def reusable(self) -> bool:
        """Whether the reply is complete, nothing of the request is left, and the server will take another one."""
        idle = self._complete and self._transport.get_write_buffer_size() == 0
        return idle and self._keep and not self._transport.is_closing()

    @property
    def location(self) -> str:
        """Where the last reply said to ask instead."""
        return self._fields.get(b"location", b"").decode("latin-1")

    async def ask(
        self, head: bytes, payload: bytes, *, until: float = math.inf, stall_s: float | None = None, streamed: bool
    ) -> None:
        """Send a request and wait for the whole reply, or for its head where it is `streamed`.

        Args:
            head: All up to the body.
            payload: The body.
            until: When the whole reply must be here, by the loop's clock.
            stall_s: Seconds that may pass with no byte moving either way, while somebody waits.
            streamed: The reply is read as it comes.

        Raises:
            TimeoutError: A deadline passed.
            Unanswered: The connection ended, and nothing of a reply had come.
            OSError: It ended later.
            MalformedReply: What came cannot be understood.
        """
        self._raise()
        self._begin(until, stall_s, streamed)
        try:
            if len(payload) <= SMALL_BYTES:
                self._transport.write(head + payload)
            else:
                await self._upload(head, payload)
            while not (self._complete or (streamed and self._headed)):
                await self._change()
        except BaseException:
            self.abort()
            raise

    async def read(self) -> bytes:
        """Return what came of the reply since the last call, waiting if that is nothing; empty at its end.

        Raises:
            TimeoutError: A deadline passed.
            OSError: The connection ended before the reply did.
            MalformedReply: What came cannot be understood.
        """
        while not self._pieces and not self._complete:
            await self._change()
        pieces, self._pieces, self._unread = self._pieces, [], 0
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def fail(self, error: Exception) -> None:
        """End the connection; whoever waits for a reply gets the error."""
        if not self._complete and self._error is None:
            self._error = error
            self._wake()
        self.abort()

    def abort(self) -> None:
        """End the connection at once; the server sees it."""
        if not (self.ended or self._loop.is_closed()):
            self._transport.abort()

    def close(self) -> None:
        """End an idle connection properly."""
        self._transport.close()

    def _begin(self, until: float, stall_s: float | None, streamed: bool) -> None:
        self._complete = self._headed = self._keep = False
        self._fields, self._pieces = {}, []
        self._bare = self._unread = 0
        self._streamed = streamed
        self._stall_s = stall_s
        self._until = until
        self._watch(until)

    async def _upload(self, head: bytes, payload: bytes) -> None:
        """Send a large body as fast as the server takes it, and no further than until it has refused or replied."""
        self._transport.write(head)
        rest = memoryview(payload)
        while rest:
            self._transport.write(rest[:SLICE_BYTES])
            rest = rest[SLICE_BYTES:]
            await asyncio.sleep(0)
            while not (self._writing or self._answered):
                await self._change()
            self._raise()
            if rest and self._answered:
                self._keep = False
                return

    @property
    def _answered(self) -> bool:
        return self._complete or (self._headed and self.status >= 400)

    async def _change(self) -> None:
        """Wait until something happens to the connection."""
        self._raise()
        if self._stall_s is not None:
            self._watch(min(self._until, self._loop.time() + self._stall_s))
        self._waiter = waiter = self._loop.create_future()
        await waiter
        self._deadline = self._until  # a reader that takes its time is no stall

    def _raise(self) -> None:
        """Raise a copy of the error: one that led back here by its traceback would keep the payload until a gc."""
        if (error := self._error) is not None:
            raise type(error)(*error.args)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _watch(self, deadline: float) -> None:
        """Set the deadline. A timer that fires too early is left alone, which saves one a request."""
        self._deadline = deadline
        if deadline < self._fires:
            if self._timer is not None:
                self._timer.cancel()
            self._fires = deadline
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer, self._fires = None, math.inf
        if self._complete or self._error is not None:
            pass
        elif self._loop.time() < self._deadline:
            self._watch(self._deadline)
        elif self._deadline < self._until:
            self.fail(TimeoutError(f"nothing for {self._stall_s:g} s"))
        else:
            self.fail(TimeoutError("the time for it is over"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = transport  # type: ignore[assignment]  # of a stream

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop; without a length, the end of the connection ends the reply."""
        if self._timer is not None:
            self._timer.cancel()
        del self._parser  # which leads back here
        self._lost(self)
        self.ended = True
        if self._error is not None:
            return
        if not (self._headed or self._bare):
            self._error = Unanswered(str(exc or "the server closed it without a reply"))
        elif exc is None and self._headed and not self._fields.keys() & {b"content-length", b"transfer-encoding"}:
            self._complete = True
        else:
            self._error = ConnectionError(str(exc or "the server closed it in the middle of a reply"))
        self._wake()

    def eof_received(self) -> None:
        """Called by the loop: no more of a reply will come, so what the server has not taken yet is not sent."""
        if self._transport.get_write_buffer_size():
            self.abort()

    def pause_writing(self) -> None:
        """Called by the loop."""
        self._writing = False

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._writing = True
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._complete:
            self._error = MalformedReply("it came before the request")
            self.abort()
            return
        self._bare += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            what = "it changes the protocol" if isinstance(error, HttpParserUpgrade) else str(error)
            self.fail(MalformedReply(what))  # only ends the connection if a complete reply came before
        if self._complete or self._error is not None:
            return
        if self._bare > LONGEST_HEAD:
            self.fail(MalformedReply(f"{self._bare} bytes and nothing of a body among them"))
        elif self._streamed:
            if self._unread > UNREAD_BYTES and self._reading:
                self._reading = False
                self._transport.pause_reading()
            self._wake()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        if self._complete:
            raise MalformedReply("a second reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, for trailers too."""
        name = name.lower()
        if name in KEPT:
            self._fields[name] = value

    def on_headers_complete(self) -> None:
        """Called by the parser, for interim replies (1xx) too."""
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self._fields.clear()
            return
        for field, known in ((b"transfer-encoding", b"chunked"), (b"content-encoding", b"identity")):
            if (value := self._fields.get(field, known)).strip().lower() != known:
                self.fail(MalformedReply(f"{field.decode()} {value.decode('latin-1')!r}, which was not asked for"))
                return
        self._headed = True
        self._keep = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._bare = 0
        self._pieces.append(body)
        self._unread += len(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._headed:
            self._complete = True
            self._wake()
