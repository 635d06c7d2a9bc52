"""Work that may be slow, such as writing to a disk or a pipe, in a thread of its own; the event loop never waits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

__all__ = ["Backlog", "LineHandler", "LineWriter"]

MAX_LINES = 10_000
STDERR = 2
_LOG = logging.getLogger("icrl.serve")

Item = TypeVar("Item")


class Backlog(Generic[Item]):
    """Hands items to a thread, in order; what comes while too much is waiting is dropped and counted.

    Args:
        work: What to do with an item, in the thread.
        name: The thread's name.
        max_waiting: Items that may wait.

    Example:
        >>> seen: list[int] = []
        >>> backlog = Backlog(seen.append, name="example", max_waiting=8)
        >>> backlog.put(1), backlog.close(timeout_s=5.0), seen
        (True, True, [1])
    """

    def __init__(self, work: Callable[[Item], None], *, name: str, max_waiting: int) -> None:
        self._work = work
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        # A daemon, because a process has to be able to end while nobody reads its pipe.
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self.dropped = 0
        """Items that were dropped."""

    def put(self, item: Item) -> bool:
        """Leave an item to the thread, or drop it; says which. Never waits."""
        if self._queue.qsize() >= self._max_waiting:
            self.dropped += 1
            return False
        self._queue.put(item)
        return True

    def close(self, *, timeout_s: float) -> bool:
        """Let the thread finish what is waiting; says whether it did in time."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._work(item)
            except Exception:
                _LOG.exception("%s failed", self._thread.name)


class LineWriter:
    """Writes lines to a file descriptor; where nobody reads it, lines are dropped and nothing else happens.

    Args:
        fd: Where to write; standard error by default. Python's own stream is left alone, because a thread that is
            stuck in it would keep the interpreter from ending.
        max_waiting: Lines that may wait.
    """

    def __init__(self, fd: int = STDERR, *, max_waiting: int = MAX_LINES) -> None:
        self._fd = fd
        self._backlog: Backlog[bytes] = Backlog(self._write, name="lines", max_waiting=max_waiting)
        self._broken = 0

    @property
    def dropped(self) -> int:
        """Lines that were lost."""
        return self._backlog.dropped + self._broken

    def write(self, line: str | bytes) -> None:
        """Write a line; the end of line is added."""
        data = line.encode(errors="backslashreplace") if isinstance(line, str) else line
        self._backlog.put(data + b"\n")

    def close(self, *, timeout_s: float = 1.0) -> bool:
        """Write what is waiting; says whether somebody read it in time."""
        return self._backlog.close(timeout_s=timeout_s)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:  # the reader is gone
            self._broken += 1


class LineHandler(logging.Handler):
    """Sends log records to a `LineWriter`, so that logging does not wait for a pipe either."""

    def __init__(self, lines: LineWriter) -> None:
        super().__init__()
        self._lines = lines
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self._lines.write(self.format(record))
