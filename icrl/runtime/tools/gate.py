"""A bound on how much happens at once, with a bounded queue in front."""

from __future__ import annotations

import asyncio
from collections import deque

from icrl.errors import ToolBusy

__all__ = ["Gate"]


class Gate:
    """Slots and a first-come queue.

    Unlike an `asyncio.Semaphore` it is not tied to the loop of its first use, and it refuses instead of queueing
    without end.

    Args:
        slots: How many may be inside.
        max_queue: How many may wait.

    Example:
        >>> gate = Gate(slots=1, max_queue=0)
        >>> gate.try_enter(), gate.try_enter()
        (True, False)
    """

    def __init__(self, *, slots: int, max_queue: int) -> None:
        self._free = slots
        self._max_queue = max_queue
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def try_enter(self) -> bool:
        """Take a slot if one is free; a queue means that none is."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    async def enter(self, timeout_s: float) -> None:
        """Wait for a slot.

        Raises:
            ToolBusy: The queue is full.
            TimeoutError: No slot became free in time.
        """
        if len(self._waiting) >= self._max_queue:
            raise ToolBusy(f"all slots are taken and {len(self._waiting)} calls wait already; try again later")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException:
            self._give_up(turn)
            raise

    def leave(self) -> None:
        """Give a slot to whoever waited longest, or back."""
        while self._waiting:
            turn = self._waiting.popleft()
            # A loop that was closed with calls still queued leaves futures that nobody can hear.
            if not turn.done() and not turn.get_loop().is_closed():
                turn.set_result(None)
                return
        self._free += 1

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            # The slot arrived together with the cancellation.
            self.leave()
        elif turn in self._waiting:
            self._waiting.remove(turn)
