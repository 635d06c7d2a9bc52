"""Work that a cancellation must not cut short: the other side would be left half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["uncancelled"]

T = TypeVar("T")


async def uncancelled(
    work: Coroutine[Any, Any, T], *, patience_s: float, on_cancel: Callable[[], object] = lambda: None
) -> T:
    """Await work; whoever is cancelled meanwhile waits until it has ended, and is cancelled then.

    Args:
        work: Ends by itself, or is cancelled after `patience_s`.
        patience_s: Seconds that it is waited for after a cancellation, however many more come.
        on_cancel: Called at the first cancellation; may tell the work to hurry.

    Example:
        >>> said = []
        >>> async def resume() -> None:
        ...     await asyncio.sleep(0.01)
        ...     said.append("resumed")
        >>> async def main() -> None:
        ...     task = asyncio.create_task(uncancelled(resume(), patience_s=5))
        ...     await asyncio.sleep(0)
        ...     task.cancel()
        ...     await asyncio.wait([task])
        ...     said.append(task.cancelled())
        >>> asyncio.run(main())
        >>> said
        ['resumed', True]
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        on_cancel()
        deadline = asyncio.get_running_loop().time() + patience_s
        while not task.done() and (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=left_s)
        if task.done() and not task.cancelled():
            task.exception()  # or asyncio would report that nobody has looked at it
        task.cancel()
        raise
