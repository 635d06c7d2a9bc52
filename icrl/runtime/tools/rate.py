"""A bound on how many calls start in a second."""

from __future__ import annotations

import asyncio
import time

from icrl.errors import ToolBusy
from icrl.runtime.tools.gate import Gate

__all__ = ["Rate"]


class Rate:
    """Turns at even distances: a token bucket that holds one token, so that no burst can exceed the rate.

    Any n + 1 consecutive turns take at least n / `calls_per_s` seconds. Turns go to whoever waited longest, and one
    who gives up costs the others nothing.

    Args:
        calls_per_s: Turns in a second.
        max_queue: How many may wait.

    Example:
        >>> rate = Rate(calls_per_s=20.0, max_queue=8)
        >>> async def three():
        ...     started = time.monotonic()
        ...     for _ in range(3):
        ...         await rate.turn(timeout_s=5.0)
        ...     return time.monotonic() - started >= 0.1
        >>> asyncio.run(three())
        True
    """

    def __init__(self, *, calls_per_s: float, max_queue: int) -> None:
        self._interval_s = 1.0 / calls_per_s
        self._next = 0.0
        self._head = Gate(slots=1, max_queue=max_queue)

    async def turn(self, timeout_s: float) -> None:
        """Wait until a call may start.

        Raises:
            ToolBusy: No turn can come in time, or the queue is full.
            TimeoutError: No turn came in time.
        """
        ends = time.monotonic() + timeout_s
        if self._next + self._head.waiting * self._interval_s > ends:
            raise ToolBusy(f"its rate limit leaves no turn within {timeout_s:.3g} s; try again later")
        if not self._head.try_enter():
            await self._head.enter(timeout_s)
        try:
            await self._wait(ends)
            self._next = max(self._next, time.monotonic()) + self._interval_s
        finally:
            self._head.leave()

    async def _wait(self, ends: float) -> None:
        wait_s = self._next - time.monotonic()
        if wait_s <= 0:
            return
        if self._next > ends:
            raise TimeoutError
        await asyncio.sleep(wait_s)
