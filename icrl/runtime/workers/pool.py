"""Requests, and the processes that answer them."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec

from icrl.errors import ConfigError
from icrl.runtime.workers.process import Process, RemoteError, WorkerDied, first_frame

__all__ = ["START_TIMEOUT_S", "Workers"]

START_TIMEOUT_S = 120.0
"""For the factory; a request's own deadline does not end a start, which the next request may need."""


class Workers:
    """Processes that are started when they are needed, and killed when they do not answer in time.

    Each process is a fresh interpreter: it inherits nothing but our import path and a few environment variables. It
    dies with us, however we end. Usable from one event loop at a time, and from another one later.

    Args:
        factory: `module:function`; called once in each process, it returns the function that answers requests.
        arguments: For the factory. Like requests and replies, anything that msgpack can carry.
        processes: How many requests are answered at once.
        memory_mb: Bound of each process' address space in MiB.
        name: For messages.

    Example:
        >>> async def count() -> int:
        ...     workers = Workers("operator:methodcaller", "count", "a")
        ...     try:
        ...         return await workers.run("banana", timeout_s=60.0)
        ...     finally:
        ...         await workers.aclose()
        >>> asyncio.run(count())
        3
    """

    def __init__(
        self, factory: str, *arguments: Any, processes: int = 1, memory_mb: int | None = None, name: str = "worker"
    ) -> None:
        if processes < 1:
            raise ConfigError(f"processes: must be >= 1, not {processes!r}")
        if memory_mb is not None and memory_mb < 1:
            raise ConfigError(f"memory_mb: must be >= 1, not {memory_mb!r}")
        self.name = name
        """For messages."""
        self._first = first_frame(factory, arguments, memory_mb)
        # Places for processes: taken by one request at a time, and empty until somebody needs them.
        self._free: list[Process | None] = [None] * processes
        self._waiting: deque[asyncio.Future[Process | None]] = deque()
        self._starting: set[asyncio.Task[Process]] = set()
        self._live: set[Process] = set()
        # A process dies with the thread that started it; this one lives until `aclose`.
        self._keeper: ThreadPoolExecutor | None = None

    async def run(self, request: Any, *, timeout_s: float) -> Any:
        """Have a request answered; those that wait for a process get one in the order of their calls.

        Cancelling kills the process, too.

        Args:
            request: For the function.
            timeout_s: Seconds, waiting included.

        Raises:
            TimeoutError: There is no answer in time; the process that worked on it has been killed.
            WorkerDied: The process ended.
            RemoteError: The function, or the factory, raised.
        """
        frame = msgspec.msgpack.encode(request)
        process: Process | None = None
        try:
            async with asyncio.timeout(timeout_s):
                process = await self._take()
                return await self._ask(process, frame)
        except TimeoutError:
            raise TimeoutError(f"{self.name}: no answer within {timeout_s:g} s") from None
        finally:
            if process is not None:
                self._give(process if process in self._live else None)

    async def aclose(self) -> None:
        """Kill all processes and wait until they are gone.

        Whoever waits for an answer gets `WorkerDied`; a later run starts anew.
        """
        keeper, self._keeper = self._keeper, None
        while self._waiting:
            _settle(self._waiting.popleft(), WorkerDied(f"{self.name}: closed"))
        for process in list(self._live):
            self._live.discard(process)
            process.kill()
            if keeper is not None:
                keeper.submit(process.reap)
        for idle in filter(None, self._free):
            idle.connection.close()
        if self._starting:
            await asyncio.wait(self._starting)
        if keeper is not None:
            await asyncio.to_thread(keeper.shutdown)

    async def _take(self) -> Process:
        """Get a process that is ready."""
        process = self._free.pop() if self._free else await self._queue()
        if process is not None and process.is_quiet:
            return process
        if process is not None:
            self._end(process)
        keeper = self._keeper = self._keeper or ThreadPoolExecutor(1, thread_name_prefix=self.name)
        task = asyncio.create_task(self._start(keeper))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # Whoever comes next needs the process as well, so it may go on starting.
            task.add_done_callback(self._give_started)
            raise
        except BaseException:
            self._give(None)
            raise

    async def _queue(self) -> Process | None:
        place: asyncio.Future[Process | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._give(place.result())
            raise

    def _give(self, process: Process | None) -> None:
        """Pass a place on; one with a process in it is the first to be taken."""
        while self._waiting:
            if _settle(self._waiting.popleft(), process):
                return
        self._free.insert(0 if process is None else len(self._free), process)

    def _give_started(self, task: asyncio.Task[Process]) -> None:
        failed = task.cancelled() or task.exception() is not None
        self._give(None if failed else task.result())

    async def _start(self, keeper: ThreadPoolExecutor) -> Process:
        process = await _spawn(keeper)
        if self._keeper is not keeper:
            process.kill()
            process.connection.close()
            keeper.submit(process.reap)
            raise WorkerDied(f"{self.name}: closed")
        self._live.add(process)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._ask(process, self._first)
        except TimeoutError:
            raise WorkerDied(f"{self.name}: the process did not start within {START_TIMEOUT_S:g} s") from None
        except RemoteError:
            self._end(process)
            raise
        return process

    async def _ask(self, process: Process, frame: bytes) -> Any:
        """Ask a process, which ends unless it answers."""
        try:
            return await process.ask(frame)
        except RemoteError:
            raise
        except EOFError as error:
            ended = self._end(process)
            how = "closed" if ended is None else await asyncio.wrap_future(ended)
            raise WorkerDied(f"{self.name}: the process {error} ({how})") from None
        except BaseException:
            self._end(process)
            raise

    def _end(self, process: Process) -> Future[str] | None:
        """Close the connection to a process; kill it and have it reaped, unless `aclose` has done that."""
        process.connection.close()
        if process not in self._live or self._keeper is None:
            return None
        self._live.discard(process)
        process.kill()
        return self._keeper.submit(process.reap)


async def _spawn(keeper: ThreadPoolExecutor) -> Process:
    spawning = keeper.submit(Process.start)
    try:
        return await asyncio.wrap_future(spawning)
    except asyncio.CancelledError:
        spawning.add_done_callback(_abandon)
        raise


def _abandon(spawning: Future[Process]) -> None:
    if not spawning.cancelled() and spawning.exception() is None:
        process = spawning.result()
        process.kill()
        process.connection.close()
        process.reap()


def _settle(future: asyncio.Future[Process | None], outcome: Process | WorkerDied | None) -> bool:
    """Resolve a future, if somebody still waits for it."""
    if future.done() or future.get_loop().is_closed():
        return False
    if isinstance(outcome, WorkerDied):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return True
