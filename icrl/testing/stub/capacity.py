"""How fast tokens come: a server whose requests share its speed."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from dataclasses import dataclass

__all__ = ["Batch", "Capacity", "Job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """A server's speed: requests share it equally, and none is faster than it would be alone.

    Example:
        >>> Capacity().rate(10), Capacity().rate(1000)
        (400.0, 40.0)
    """

    tokens_per_s: float = 40_000.0
    """Tokens a second of all requests together."""
    tokens_per_s_per_request: float = 400.0
    """Tokens a second of one request at most."""
    max_running: int | None = None
    """Requests beyond this wait in a queue; `None` has none."""

    def rate(self, running: int) -> float:
        """Return the tokens a second of each of so many requests."""
        return min(self.tokens_per_s_per_request, self.tokens_per_s / max(1, running))


class Job:
    """A request that is being answered: how many of its tokens there are by now."""

    __slots__ = ("_batch", "_entered", "_reached", "_wanted", "over", "total", "waiter")

    def __init__(self, batch: Batch, total: int) -> None:
        self._batch = batch
        self._entered: float | None = None
        self._reached = 0
        self._wanted = 0
        self.total = total
        """Tokens when it is complete."""
        self.over = False
        """Whether no more tokens will come."""
        self.waiter: asyncio.Future[None] | None = None
        """What `reach` waits for."""

    @property
    def produced(self) -> int:
        """Tokens so far."""
        if not self.over and self._entered is not None:
            self._reached = min(self.total, max(self._reached, self._batch.virtual_since(self._entered)))
        return self._reached

    async def reach(self, wanted: int) -> int:
        """Wait for so many tokens, or for the end, and return how many there are."""
        if not self.over:
            self._wanted = min(wanted, self.total)
            self.waiter = asyncio.get_running_loop().create_future()
            if self._entered is not None:
                self._batch.expect(self)
            await self.waiter
        return self.produced

    def enter(self, virtual: float) -> None:
        """Leave the queue."""
        self._entered = virtual
        if self.waiter is not None:
            self._batch.expect(self)

    @property
    def due(self) -> float:
        """Virtual time at which the tokens that are waited for are there."""
        return (self._entered or 0.0) + self._wanted

    def wake(self) -> bool:
        """Note that the tokens that were waited for are there; tell whether they are all."""
        self._reached = max(self._reached, self._wanted)
        self._release()
        self.over = self._reached == self.total
        return self.over

    def finish(self) -> None:
        """Let no more tokens come."""
        _ = self.produced
        self.over = True
        self._release()

    def _release(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Batch:
    """Requests that share a server's speed.

    Time is virtual: it passes at the speed of one request, so that a request of n tokens ends n after it began,
    however many others come and go. Without a capacity all tokens that are waited for are there at the next turn of
    the loop.

    Args:
        capacity: The server's speed, or `None`.
    """

    def __init__(self, capacity: Capacity | None) -> None:
        self._capacity = capacity
        self._running: set[Job] = set()
        self._queue: deque[Job] = deque()
        self._heap: list[tuple[float, int, Job]] = []
        self._order = itertools.count()
        self._timer: asyncio.Handle | None = None
        self._virtual = 0.0
        self._last = 0.0
        self._paused = False

    @property
    def running(self) -> int:
        """Requests that are being sampled."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def capacity(self) -> Capacity | None:
        """The server's speed."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: Capacity | None) -> None:
        self._advance()
        self._capacity = capacity
        self._admit()
        self._schedule()

    def start(self, total: int) -> Job:
        """Let a request in."""
        self._advance()
        job = Job(self, total)
        self._queue.append(job)
        self._admit()
        self._schedule()
        return job

    def stop(self, job: Job) -> None:
        """End a request with the tokens that it has."""
        self._advance()
        job.finish()
        self._leave(job)
        self._schedule()

    def pause(self) -> None:
        """Let no more tokens come until `resume`."""
        self._advance()
        self._paused = True
        self._schedule()

    def resume(self) -> None:
        """Let tokens come again."""
        self._advance()
        self._paused = False
        self._schedule()

    def expect(self, job: Job) -> None:
        """Wake a request when its tokens are there."""
        heapq.heappush(self._heap, (job.due, next(self._order), job))
        if self._heap[0][2] is job:
            self._schedule()

    def virtual_since(self, entered: float) -> int:
        """Return whole tokens of a request since it entered."""
        self._advance()
        return int(self._virtual - entered + 1e-6) if self._capacity else 0

    def _admit(self) -> None:
        limit = self._capacity.max_running if self._capacity else None
        while self._queue and (limit is None or len(self._running) < limit):
            job = self._queue.popleft()
            self._running.add(job)
            job.enter(self._virtual)

    def _leave(self, job: Job) -> None:
        if job in self._running:
            self._running.discard(job)
            self._admit()
        elif job in self._queue:
            self._queue.remove(job)

    def _advance(self) -> None:
        """Bring virtual time up to now, request by request."""
        now = asyncio.get_running_loop().time()
        if self._capacity and not self._paused:
            rate = self._capacity.rate(len(self._running))
            while self._heap and self._last + (self._heap[0][0] - self._virtual) / rate <= now:
                self._last += max(0.0, self._heap[0][0] - self._virtual) / rate
                self._virtual = max(self._virtual, self._heap[0][0])
                self._wake(heapq.heappop(self._heap)[2])
                rate = self._capacity.rate(len(self._running))
            self._virtual += (now - self._last) * rate
        self._last = now

    def _wake(self, job: Job) -> None:
        if not job.over and job.wake():
            self._leave(job)

    def _schedule(self) -> None:
        """Come back when the next tokens are due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._paused or not self._heap:
            return
        loop = asyncio.get_running_loop()
        if self._capacity is None:
            self._timer = loop.call_soon(self._tick)
        else:
            rate = self._capacity.rate(len(self._running))
            self._timer = loop.call_at(self._last + (self._heap[0][0] - self._virtual) / rate, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._advance()
        if self._capacity is None:
            for _, _, job in [heapq.heappop(self._heap) for _ in range(len(self._heap))]:
                self._wake(job)
        self._schedule()
