"""An event loop whose clock jumps to the next timer, so that hours of waiting take no time and a hang is an error."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar
from unittest.mock import patch

__all__ = ["Hang", "run_virtually"]

T = TypeVar("T")


THREADS_S = 10.0
"""Real seconds that a thread may take where everybody waits for one."""


class Hang(Exception):
    """Everybody waits, and no timer will ever end it."""


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: where nothing is ready, the time is later instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None and not (ready := super().select(THREADS_S)):
            raise Hang("nothing is left that could happen")
        self.now += max(timeout or 0.0, 1e-6)
        return ready


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that needs no threads and no network, in virtual time."""
    clock = _Jumping()
    with patch.object(time, "monotonic", lambda: clock.now):
        loop = asyncio.SelectorEventLoop(clock)
        try:
            return loop.run_until_complete(main)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            with suppress(Hang):
                loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
