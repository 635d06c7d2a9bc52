"""An index in a thread of this process: the simplest retriever, and for a small index the fastest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.retrievers.protocol import Index, check_k

__all__ = ["ThreadRetriever"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Request:
    queries: Sequence[str]
    k: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[list[Hit]]]


class ThreadRetriever:
    """Searches an index in a thread of its own.

    Queries that arrive while the thread is busy are searched together in its next round, and all their callers wake
    up at once.

    Args:
        index: An open index.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from icrl.runtime.tools.index import Bm25Index, build_index
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "corpus.jsonl").write_text('{"text": "The code of Rikor is 113."}')
        >>> _ = build_index(folder / "corpus.jsonl", folder / "index", show_progress=False)
        >>> retriever = ThreadRetriever(Bm25Index.open(folder / "index"))
        >>> asyncio.run(retriever.search(["rikor"], k=1))[0][0].id
        '0'
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = Lock()
        self._waiting: list[_Request] = []
        self._working = False
        self._thread: ThreadPoolExecutor | None = None

    @property
    def fingerprint(self) -> str:
        """Names whatever decides what a search finds."""
        return self._index.fingerprint

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find at most `k` documents for each query, best first.

        Raises:
            ConfigError: `k` is less than 1.
        """
        check_k(k)
        loop = asyncio.get_running_loop()
        request = _Request(queries=queries, k=k, loop=loop, future=loop.create_future())
        with self._lock:
            self._waiting.append(request)
            idle, self._working = not self._working, True
        if idle:
            self._thread = self._thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")
            self._thread.submit(self._work)
        return await request.future

    async def aclose(self) -> None:
        """Finish what is asked and end the thread; a later search starts a new one."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)

    def _work(self) -> None:
        """Answer in rounds until nobody waits."""
        while True:
            with self._lock:
                requests, self._waiting = self._waiting, []
                self._working = bool(requests)
            if not requests:
                return
            live = [request for request in requests if not request.future.cancelled()]
            outcome = self._attempt(live)
            for loop in {request.loop for request in live}:
                mine = [(request, found) for request, found in zip(live, outcome, strict=True) if request.loop is loop]
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_deliver, mine)

    def _attempt(self, requests: list[_Request]) -> list[list[list[Hit]] | Exception]:
        if not requests:
            return []
        try:
            queries = [query for request in requests for query in request.queries]
            found = iter(self._index.search(queries, max(request.k for request in requests)))
        except Exception as error:
            return [error] * len(requests)
        return [[next(found)[: request.k] for _ in request.queries] for request in requests]


def _deliver(answers: list[tuple[_Request, list[list[Hit]] | Exception]]) -> None:
    for request, answer in answers:
        if request.future.done():
            continue
        if isinstance(answer, Exception):
            request.future.set_exception(answer)
        else:
            request.future.set_result(answer)
