"""Ends requests at the server, in the background.

The server forgets an abort of a request that it does not know yet, and the HTTP request that brings it may still be on
its way; so an abort is repeated until the request is back, and after a while the wait for it is given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from icrl.errors import EngineError
from icrl.runtime.engines.sglang.live import Live

__all__ = ["Aborts"]

FIRST_PAUSE_S = 0.05
AT_ONCE = 32


class Aborts:
    """The aborts of one server.

    Args:
        tell: Tells the server that a request is to end; what it answers does not matter.
        patience_s: Seconds until a request that does not come back is given up.
    """

    def __init__(self, tell: Callable[[str], Awaitable[object]], *, patience_s: float) -> None:
        self._say = tell
        self._patience_s = patience_s
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def end(self, live: Live) -> None:
        """Make a request come back with what it has."""
        if not live.aborted:
            live.aborted = True
            self._spawn(self._insist(live))

    def withdraw(self, rid: str) -> None:
        """Tell the server that nobody waits for a request any more."""
        self._spawn(self._forget(rid))

    async def finish(self) -> None:
        """Wait until nothing is left to tell."""
        while self._tasks:  # a request that comes back broken meanwhile adds one
            await asyncio.wait(self._tasks)

    async def _insist(self, live: Live) -> None:
        pause_s = FIRST_PAUSE_S
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                while not live.done.is_set():
                    await self._tell(live.rid)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(live.done.wait(), pause_s)
                    pause_s = min(1.0, pause_s * 2)
        live.give_up()

    async def _forget(self, rid: str) -> None:
        """Say it twice, as the first may overtake the request itself."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._tell(rid)
                await asyncio.sleep(FIRST_PAUSE_S * 4)
                await self._tell(rid)

    async def _tell(self, rid: str) -> None:
        async with self._gate:
            with suppress(EngineError):
                await self._say(rid)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
