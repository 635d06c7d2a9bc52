"""Worker processes of Monty for one event loop: opened once, lent to programs, and gone when they are closed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

from icrl.errors import SandboxError
from icrl.runtime.sandbox.monty_feed import MAX_OUTPUT_BYTES, Printed, feed
from icrl.runtime.sandbox.program import Program
from icrl.runtime.sandbox.result import SandboxResult

__all__ = ["MontyWorkers", "run_in"]

_START_S: Final = 20.0
_SUSPENSIONS: Final = 100_000


class MontyWorkers:
    """The library's pool, and whatever runs in it.

    Args:
        processes: How many there may be at once.
        concurrency: How many of them run programs that belong to no session.
    """

    def __init__(self, *, processes: int, concurrency: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.turns = asyncio.Semaphore(concurrency)
        self._processes = processes
        self._opening = asyncio.Lock()
        self._pool: Any = None
        self._under_way: set[asyncio.Task[SandboxResult]] = set()
        self._is_closed = False

    async def open(self) -> None:
        """Start the first process, if that was not done yet.

        Raises:
            SandboxError: It does not start.
        """
        import pydantic_monty

        async with self._opening:
            if self._pool is None:
                make = partial(pydantic_monty.AsyncMonty, min_processes=1, max_processes=self._processes)
                # In a thread, since it looks for the interpreter's file.
                pool = await _started(asyncio.to_thread(make), "cannot find Monty")
                await _started(pool.__aenter__(), "cannot start Monty")
                self._pool = pool

    @asynccontextmanager
    async def checkout(self, memory_mb: int) -> AsyncIterator[Any]:
        """Lend an interpreter with nothing in it.

        Args:
            memory_mb: MiB of heap that it may have.

        Raises:
            SandboxError: None can be started.
        """
        await self.open()
        limits = {"max_memory": memory_mb * 2**20, "max_suspensions": _SUSPENSIONS}
        async with AsyncExitStack() as stack:
            checkout = self._pool.checkout(limits=limits, os_policy={"sleep": "zero"})
            session = await _started(stack.enter_async_context(checkout), "Monty has no worker")
            yield session

    async def guard(self, work: Callable[[], Awaitable[SandboxResult]]) -> SandboxResult:
        """Run something that `aclose` ends.

        Raises:
            SandboxError: It was ended so.
        """
        task = self.loop.create_task(_awaited(work))
        self._under_way.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._is_closed and task.cancelled() and not _is_cancelling():
                raise SandboxError("Monty was closed while the program ran") from None
            raise
        finally:
            self._under_way.discard(task)

    async def aclose(self) -> None:
        """Kill what runs and end the processes that wait; sessions end by themselves."""
        self._is_closed = True
        tasks = tuple(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with self._opening:
            pool, self._pool = self._pool, None
            if pool is not None:
                await pool.__aexit__(None, None, None)


async def run_in(session: Any, program: Program) -> SandboxResult:
    """Run a program in an interpreter until its deadline; the library kills a worker whose program is given up.

    Args:
        session: What `MontyWorkers.checkout` lends.
        program: Source and bounds.
    """
    loop, started = asyncio.get_running_loop(), time.perf_counter()
    deadline = asyncio.timeout(program.timeout_s)
    expire = partial(_expire, deadline)
    printed = Printed(on_overflow=lambda: loop.call_soon_threadsafe(expire))
    try:
        async with deadline:
            result = await feed(session, program.code, printed)
    except TimeoutError:
        told = f"stopped: the program was not done after {program.timeout_s:g} s"
        result = SandboxResult(status="timeout", stdout=printed.text, error=told)
    if printed.overflowed:
        told = f"stopped: the program printed more than {MAX_OUTPUT_BYTES} bytes"
        result = replace(result, status="output_limit", stdout=printed.text, value=None, error=told, truncated=True)
    return replace(result, wall_s=time.perf_counter() - started)


def _expire(deadline: asyncio.Timeout) -> None:
    with contextlib.suppress(RuntimeError):  # the program has ended meanwhile
        deadline.reschedule(0.0)


async def _started(starting: Awaitable[Any], failure: str) -> Any:
    import pydantic_monty

    try:
        async with asyncio.timeout(_START_S):
            return await starting
    except (OSError, RuntimeError, pydantic_monty.MontyError) as error:  # TimeoutError is an OSError
        raise SandboxError(f"{failure}: {str(error) or type(error).__name__}") from error


async def _awaited(work: Callable[[], Awaitable[SandboxResult]]) -> SandboxResult:
    return await work()


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
