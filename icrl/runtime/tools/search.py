"""Search as a tool: any retriever behind it, and the local one that works off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from threading import Lock
from typing import Any, Protocol

from icrl.errors import ConfigError, ToolArgumentError
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.index import Bm25Index
from icrl.runtime.tools.signature import Signature
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec, close

__all__ = ["Bm25Retriever", "Hit", "Retriever", "SearchTool"]


class Retriever(Protocol):
    """Finds documents; may have an `aclose` like a tool's."""

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find at most `k` documents for each query, best first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Request:
    queries: Sequence[str]
    k: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[list[Hit]]]


class Bm25Retriever:
    """Searches a local index in a thread of its own.

    Queries that arrive while the thread is busy are searched together in its next round, and all their callers wake
    up at once.

    Args:
        index: An open index.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from icrl.runtime.tools.index import build_index
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "corpus.jsonl").write_text('{"text": "The code of Rikor is 113."}')
        >>> _ = build_index(folder / "corpus.jsonl", folder / "index", show_progress=False)
        >>> retriever = Bm25Retriever(Bm25Index.open(folder / "index"))
        >>> asyncio.run(retriever.search(["rikor"], k=1))[0][0].id
        '0'
    """

    def __init__(self, index: Bm25Index) -> None:
        self._index = index
        self._lock = Lock()
        self._waiting: list[_Request] = []
        self._working = False
        self._thread: ThreadPoolExecutor | None = None

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find at most `k` documents for each query, best first.

        Raises:
            ConfigError: `k` is less than 1.
        """
        if k < 1:
            raise ConfigError(f"k: must be >= 1, not {k!r}")
        loop = asyncio.get_running_loop()
        request = _Request(queries=queries, k=k, loop=loop, future=loop.create_future())
        with self._lock:
            self._waiting.append(request)
            idle, self._working = not self._working, True
        if idle:
            self._thread = self._thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="bm25")
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


def _form(query: str) -> None:
    """Describe what the model sends.

    Args:
        query: Words to look for.
    """


_SIGNATURE = Signature.of(_form)


@dataclass(frozen=True, slots=True)
class SearchTool:
    """Looks up one query and shows the documents found.

    A document is shown as its title, if it has one, and its text on the next line.

    Example:
        >>> class Everywhere:
        ...     async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        ...         return [[Hit(id="0", title="", text=f"{query} is here.", score=1.0)] for query in queries]
        >>> asyncio.run(SearchTool(Everywhere(), separator=" ")({"query": "Rikor"}))
        'Rikor is here.'
    """

    retriever: Retriever
    """Where to look."""
    _: KW_ONLY
    k: int = 3
    """Documents to show at most."""
    name: str = "search"
    """What the model calls it."""
    description: str = "Search a collection of documents for words and return the passages that fit best."
    """What the model is told."""
    separator: str = "\n"
    """Stands between two documents."""
    empty: str = "no result."
    """The answer when nothing was found."""
    policy: ToolPolicy = field(default_factory=lambda: ToolPolicy(max_concurrency=1024))
    """How a toolbox treats it; many calls at once make large rounds."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k: must be >= 1, not {self.k!r}")

    @property
    def spec(self) -> ToolSpec:
        """What the model is told."""
        return ToolSpec(name=self.name, description=self.description, parameters=_SIGNATURE.schema)

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Search.

        Raises:
            ToolArgumentError: There is no query, or it is blank.
        """
        query = _SIGNATURE.bind(arguments)["query"]
        if not query.strip():
            raise ToolArgumentError("argument 'query' is empty; write the words to look for")
        (hits,) = await self.retriever.search([query], self.k)
        return self.separator.join(map(_show, hits)) or self.empty

    async def aclose(self) -> None:
        """Close the retriever."""
        await close(self.retriever)


def _show(hit: Hit) -> str:
    return f"{hit.title}\n{hit.text}" if hit.title else hit.text
