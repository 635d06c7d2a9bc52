"""Reading what a child says, without ever waiting for it or believing that it stops."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

__all__ = ["CappedOutput", "LineReader"]

_CHUNK = 1 << 16
_PAUSE_S = 0.01
_MAX_LINE = 1 << 18


class CappedOutput:
    """Collects what a program prints, up to a cap.

    A program that prints much wakes the reader once in a while, not at every line; one that ends soon never does,
    because what it printed waits in the pipe.

    Args:
        descriptor: The end of the pipe to read from, not blocking; closed by `close`.
        cap: Bytes to keep.
        on_overflow: Called once, when there is more than that.
    """

    def __init__(self, descriptor: int, *, cap: int, on_overflow: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._cap = cap
        self._on_overflow = on_overflow
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = self._loop.call_later(_PAUSE_S, self._resume)
        self.overflowed = False

    def _readable(self) -> None:
        self._loop.remove_reader(self._descriptor)
        if self._read():
            self._pause = self._loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._descriptor, self._readable)

    def _read(self) -> bool:
        """Read what is there; return whether more may come."""
        while not self.overflowed:
            try:
                chunk = os.read(self._descriptor, _CHUNK)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self._kept += chunk
            if len(self._kept) > self._cap:
                self.overflowed = True
                self._on_overflow()
        return False

    def take(self) -> str:
        """Return what was printed since the last time."""
        self._read()
        text = bytes(self._kept[: self._cap]).decode("utf-8", "replace")
        self._kept.clear()
        return text

    def close(self) -> None:
        """Stop reading."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)


class LineReader:
    """Reads one line at a time from a conversation. Anything else is a breach of it, and not read on.

    Args:
        connection: A connected socket, not blocking; closed by `close`.
        on_line: Called with each line, and with `None` upon a breach: a line nobody asked for, or one without end.
    """

    def __init__(self, connection: socket.socket, on_line: Callable[[bytes | None], None]) -> None:
        self._connection = connection
        self._on_line = on_line
        self._pending = bytearray()
        self._loop = asyncio.get_running_loop()
        self._is_broken = False
        self._is_expected = False

    def expect(self, *, now: bool) -> None:
        """Allow one line.

        Args:
            now: Tell of it as soon as it comes, and not only when it is drained.
        """
        self._is_expected = True
        if now:
            self._loop.add_reader(self._connection, self._read)

    def _read(self) -> bool:
        """Take in what is there; return whether more may come."""
        if self._is_broken:
            return False
        try:
            chunk = self._connection.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            chunk = b""
        self._pending += chunk
        line, newline, rest = self._pending.partition(b"\n")
        if rest or len(line) > _MAX_LINE or (chunk and not self._is_expected):
            self._breach()
        elif newline:
            self._pending.clear()
            self._is_expected = False
            self._on_line(bytes(line))
        elif chunk:
            return True
        else:
            self._loop.remove_reader(self._connection)
        return False

    def _breach(self) -> None:
        self._loop.remove_reader(self._connection)
        self._is_broken = True
        self._on_line(None)

    def drain(self) -> None:
        """Take in what a child that has ended left behind."""
        while self._read():
            pass

    def close(self) -> None:
        """Stop reading and hang up."""
        self._loop.remove_reader(self._connection)
        self._connection.close()
