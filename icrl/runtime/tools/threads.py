"""Threads for blocking functions, kept away from the event loop and from the end of the process."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

from icrl.errors import ToolError

__all__ = ["Threads"]

CLOSE_POLL_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Work:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Threads:
    """A bounded pool of threads whose callers may stop waiting at any time.

    A function that never returns keeps its thread for good, since Python cannot kill one. So a hung function costs a
    slot that `busy` shows, instead of running on beside a pool that believes itself idle. The threads are daemons:
    the process can end while one hangs.

    Args:
        name: Names the threads.
        limit: How many functions may run at once; more wait.

    Example:
        >>> asyncio.run(Threads(name="doc", limit=1).run(lambda: 6 * 7))
        42
    """

    def __init__(self, *, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._busy = 0
        self._queued = 0

    @property
    def busy(self) -> int:
        """Functions that run now, abandoned ones included."""
        return self._busy

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function in a thread and return what it returns, or raise what it raises.

        Cancelling the caller abandons the function: it is skipped if it still waits, else its result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        call = partial(contextvars.copy_context().run, function)
        with self._lock:
            self._queued += 1
            grow = self._threads < self._limit and self._threads - self._busy < self._queued
            self._threads += grow
        self._work.put(_Work(function=call, loop=loop, future=future))
        if grow:
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        return await future

    async def aclose(self) -> None:
        """End the idle threads; a busy one ends when its function returns, which nobody waits for."""
        with self._lock:
            ending = self._threads
        for _ in range(ending):
            self._work.put(None)
        # Threads cannot set an asyncio.Event of this loop; an idle one is gone within a poll or two.
        while self._threads > self._busy:  # noqa: ASYNC110
            await asyncio.sleep(CLOSE_POLL_S)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            with self._lock:
                self._queued -= 1
                self._busy += 1
            outcome = None if work.future.cancelled() else _attempt(work.function)
            with self._lock:
                self._busy -= 1
            if outcome is not None:
                # A closed loop has nobody left who waits.
                with suppress(RuntimeError):
                    work.loop.call_soon_threadsafe(_settle, work.future, *outcome)
            # An idle thread must not keep the last caller's objects alive.
            del work, outcome
        with self._lock:
            self._threads -= 1


def _attempt(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return function(), None
    except StopIteration as error:
        # A future refuses StopIteration, because a coroutine could not raise it either.
        return None, RuntimeError(f"StopIteration: {error}")
    except Exception as error:
        return None, error
    except BaseException as error:
        # SystemExit out of a future would end the whole event loop.
        return None, ToolError(f"the function raised {type(error).__name__}")


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
