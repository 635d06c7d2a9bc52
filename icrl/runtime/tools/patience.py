"""Waiting for a task without being at its mercy."""

from __future__ import annotations

import asyncio

__all__ = ["patience"]


async def patience(task: asyncio.Future[str], timeout_s: float) -> None:
    """Wait until a task is done or the time is over, whichever is first; the task is not touched.

    `asyncio.wait` for one task, at half its cost.

    Example:
        >>> async def main():
        ...     task = asyncio.ensure_future(asyncio.sleep(60))
        ...     await patience(task, 0.01)
        ...     return task.done(), task.cancel()
        >>> asyncio.run(main())
        (False, True)
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def release(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(timeout_s, release)
    task.add_done_callback(release)
    try:
        await waiter
    finally:
        timer.cancel()
        task.remove_done_callback(release)
