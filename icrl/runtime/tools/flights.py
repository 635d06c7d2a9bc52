"""One run for equal calls that are made at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from icrl.runtime.tools.keys import CallKey
from icrl.runtime.tools.patience import patience

__all__ = ["Flights", "Late"]


class Late(Exception):
    """There was no answer in time; not a `TimeoutError`, which the run itself may raise."""


@dataclass(slots=True, eq=False)
class _Flight:
    task: asyncio.Task[str]
    callers: int = 0


class Flights:
    """Calls in flight, by key: whoever asks what is being answered already waits for that answer.

    A caller that is cancelled, or has no time left, does not disturb the others. When the last one is gone, the run
    is cancelled.

    Args:
        grace_s: How long the last caller waits for a cancelled run to end.

    Example:
        >>> key = CallKey(tool="search", fingerprint="", arguments="{}")
        >>> runs = []
        >>> async def search():
        ...     runs.append(1)
        ...     await asyncio.sleep(0.01)
        ...     return "found"
        >>> async def twice():
        ...     flights = Flights(grace_s=1.0)
        ...     return await asyncio.gather(*(flights.join(key, search, timeout_s=5.0) for _ in range(2)))
        >>> asyncio.run(twice()), len(runs)
        (['found', 'found'], 1)
    """

    def __init__(self, *, grace_s: float) -> None:
        self._grace_s = grace_s
        self._live: dict[CallKey, _Flight] = {}
        self.ending: set[asyncio.Task[str]] = set()
        """Runs that were cancelled and have not ended yet."""

    def has(self, key: CallKey) -> bool:
        """Whether joining would share a run."""
        flight = self._live.get(key)
        return flight is not None and flight.task.get_loop() is asyncio.get_running_loop()

    async def join(self, key: CallKey, start: Callable[[], Coroutine[Any, Any, str]], *, timeout_s: float) -> str:
        """Return the answer of the run for `key`, which `start()` begins where there is none.

        Raises:
            Late: There was no answer in time.
        """
        if not self.has(key):
            task = asyncio.create_task(start())
            self._live[key] = _Flight(task)
            task.add_done_callback(partial(self._land, key))
        flight = self._live[key]
        flight.callers += 1
        try:
            await patience(flight.task, timeout_s)
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.task.done():
                await self._cancel(key, flight.task)
        if not flight.task.done() or flight.task.cancelled():
            raise Late
        return flight.task.result()

    async def _cancel(self, key: CallKey, task: asyncio.Task[str]) -> None:
        # Whoever asks from now on needs a run of its own.
        del self._live[key]
        self.ending.add(task)
        task.add_done_callback(self.ending.discard)
        task.cancel()
        await patience(task, self._grace_s)

    def _land(self, key: CallKey, task: asyncio.Task[str]) -> None:
        flight = self._live.get(key)
        if flight is not None and flight.task is task:
            del self._live[key]
        if not task.cancelled():
            # Marks it as seen: its callers may all be gone.
            task.exception()
