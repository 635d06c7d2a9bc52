"""Writing things down behind the back of the event loop, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from icrl.runtime.tools.threads import Threads

__all__ = ["Outbox"]

T = TypeVar("T")


class Outbox(Generic[T]):
    """Hands what is put into it to a blocking function, which runs in a thread and gets all that waits at once.

    When the loop ends in the middle of a batch, that batch may be handed over again.

    Args:
        store: Writes a batch down.
        threads: Where it runs.

    Example:
        >>> written = []
        >>> async def main():
        ...     threads = Threads(name="doc", limit=1)
        ...     outbox = Outbox(written.extend, threads=threads)
        ...     for number in range(3):
        ...         outbox.put(number)
        ...     await outbox.flush()
        ...     await threads.aclose()
        >>> asyncio.run(main())
        >>> written
        [0, 1, 2]
    """

    def __init__(self, store: Callable[[Sequence[T]], object], *, threads: Threads) -> None:
        self._store = store
        self._threads = threads
        self._waiting: list[T] = []
        self._writer: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: T) -> None:
        """Have something written soon.

        Raises:
            Exception: What `store` raised for something put earlier.
        """
        self._waiting.append(item)
        writer, loop = self._writer, asyncio.get_running_loop()
        if writer is not None and not writer.done() and writer.get_loop() is loop:
            return
        self._writer = loop.create_task(self._write())
        if writer is not None and writer.done() and not writer.cancelled():
            writer.result()

    async def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            Exception: What `store` raised.
        """
        writer, self._writer = self._writer, None
        if writer is not None and not writer.cancelled() and writer.get_loop() is asyncio.get_running_loop():
            await asyncio.shield(writer)
        await self._write()

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._threads.run(partial(self._store, batch))
            except asyncio.CancelledError:
                # The loop is about to end. Written twice is better than not at all.
                self._waiting = [*batch, *self._waiting]
                raise
