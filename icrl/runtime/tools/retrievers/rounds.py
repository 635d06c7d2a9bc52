"""Queries that wait are searched together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil

from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.retrievers.protocol import check_k

__all__ = ["Answer", "Rounds"]

Answer = Callable[[list[str], int], Awaitable[Sequence[list[Hit] | BaseException]]]
"""Searches for several queries at once; what fails for one query only stands in its place."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Request:
    queries: Sequence[str]
    k: int
    future: asyncio.Future[list[list[Hit]]]


class Rounds:
    """Forms rounds of searches.

    Whatever is asked in one turn of the event loop, or while all slots are taken, is shared out among the slots that
    are free. A round that nobody waits for any more is cancelled. Usable from one event loop at a time.

    Args:
        answer: Searches; called with all queries of a round and the largest `k` among them.
        slots: Rounds at once.
        max_queries: Bound of a round; a larger request makes a round of its own.

    Example:
        >>> async def answer(queries: list[str], k: int) -> list[list[Hit]]:
        ...     print(queries, k)
        ...     return [[] for _ in queries]
        >>> async def ask_twice() -> None:
        ...     rounds = Rounds(answer, slots=1)
        ...     await asyncio.gather(rounds.search(["code"], 1), rounds.search(["mayor"], 3))
        >>> asyncio.run(ask_twice())
        ['code', 'mayor'] 3
    """

    def __init__(self, answer: Answer, *, slots: int, max_queries: int = 256) -> None:
        self._answer = answer
        self._slots = slots
        self._max_queries = max_queries
        self._waiting: deque[_Request] = deque()
        self._rounds: set[asyncio.Task[None]] = set()

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find at most `k` documents for each query, best first.

        Raises:
            ConfigError: `k` is less than 1.
        """
        check_k(k)
        if not queries:
            return []
        loop = asyncio.get_running_loop()
        request = _Request(queries=queries, k=k, future=loop.create_future())
        self._waiting.append(request)
        loop.call_soon(self._form)
        return await request.future

    async def aclose(self) -> None:
        """Cancel whatever is asked."""
        while self._waiting:
            self._waiting.popleft().future.cancel()
        for task in self._rounds:
            task.cancel()
        if self._rounds:
            await asyncio.wait(self._rounds)

    def _form(self) -> None:
        """Start rounds while there are free slots and requests."""
        loop = asyncio.get_running_loop()
        # Of an event loop that ended, requests may be left that nobody waits for.
        live = [r for r in self._waiting if not r.future.done() and r.future.get_loop() is loop]
        self._waiting = deque(live)
        while self._waiting and len(self._rounds) < self._slots:
            share = ceil(len(self._waiting) / (self._slots - len(self._rounds)))
            requests = [self._waiting.popleft()]
            size = len(requests[0].queries)
            while self._waiting and len(requests) < share:
                size += len(self._waiting[0].queries)
                if size > self._max_queries:
                    break
                requests.append(self._waiting.popleft())
            self._start(requests)

    def _start(self, requests: list[_Request]) -> None:
        task = asyncio.get_running_loop().create_task(self._run(requests))
        self._rounds.add(task)
        task.add_done_callback(self._end)

        def on_leaving(_: object) -> None:
            if all(request.future.done() for request in requests):
                task.cancel()

        for request in requests:
            request.future.add_done_callback(on_leaving)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._rounds.discard(task)
        self._form()

    async def _run(self, requests: list[_Request]) -> None:
        queries = [query for request in requests for query in request.queries]
        try:
            found = iter(await self._answer(queries, max(request.k for request in requests)))
        except asyncio.CancelledError:
            for request in requests:
                request.future.cancel()
            raise
        except Exception as error:
            found = iter([error] * len(queries))
        for request in requests:
            _settle(request, list(islice(found, len(request.queries))))


def _settle(request: _Request, found: Sequence[list[Hit] | BaseException]) -> None:
    if request.future.done():
        return
    hits: list[list[Hit]] = []
    for one in found:
        if isinstance(one, BaseException):
            request.future.set_exception(one)
            return
        hits.append(one[: request.k])
    request.future.set_result(hits)
