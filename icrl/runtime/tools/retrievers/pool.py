"""An index in processes of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from icrl.errors import DataError, ToolUnavailable
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.retrievers.rounds import Rounds
from icrl.runtime.workers import RemoteError, WorkerDied, Workers

__all__ = ["PoolRetriever", "serve_index"]

FACTORY = f"{__name__}:serve_index"


class PoolRetriever:
    """Searches an index in several processes, which map the same files and so share them in memory.

    Queries that wait are searched together. A search that takes too long, or that ends its process, costs nobody else
    an answer: the process is replaced, and the queries that were searched with it are searched one by one.

    Args:
        directory: An index of any kind.
        fingerprint: Names whatever decides what a search finds.
        processes: Readers; each uses one core.
        timeout_s: Seconds for one round. Opening the index at the first search counts, too; if that takes longer, the
            reader goes on opening, and later searches find it ready.
        memory_mb: Bound of each reader's address space in MiB, the whole mapped index included.

    Example:
        >>> import asyncio, tempfile
        >>> from icrl.runtime.tools.index import build_index
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "corpus.jsonl").write_text('{"text": "The code of Rikor is 113."}')
        >>> meta = build_index(folder / "corpus.jsonl", folder / "index", show_progress=False)
        >>> async def main() -> str:
        ...     retriever = PoolRetriever(folder / "index", fingerprint=meta.fingerprint, processes=1)
        ...     try:
        ...         return (await retriever.search(["rikor"], k=1))[0][0].text
        ...     finally:
        ...         await retriever.aclose()
        >>> asyncio.run(main())
        'The code of Rikor is 113.'
    """

    def __init__(
        self,
        directory: Path,
        *,
        fingerprint: str,
        processes: int = 2,
        timeout_s: float = 10.0,
        memory_mb: int | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        """Names whatever decides what a search finds."""
        self._timeout_s = timeout_s
        self._workers = Workers(FACTORY, str(directory), processes=processes, memory_mb=memory_mb, name="search")
        self._rounds = Rounds(self._answer, slots=processes)

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find at most `k` documents for each query, best first.

        Raises:
            ConfigError: `k` is less than 1.
            DataError: The index cannot be opened.
            ToolUnavailable: There is no answer in time, or the search ended its process.
        """
        return await self._rounds.search(queries, k)

    async def aclose(self) -> None:
        """Cancel whatever is asked and end the processes; a later search starts new ones."""
        await self._rounds.aclose()
        await self._workers.aclose()

    async def _answer(self, queries: list[str], k: int) -> Sequence[list[Hit] | BaseException]:
        try:
            return await self._ask(queries, k)
        except ToolUnavailable:
            if len(queries) == 1:
                raise
        return [await self._attempt(query, k) for query in queries]

    async def _attempt(self, query: str, k: int) -> list[Hit] | BaseException:
        try:
            return (await self._ask([query], k))[0]
        except ToolUnavailable as error:
            return error

    async def _ask(self, queries: list[str], k: int) -> list[list[Hit]]:
        try:
            found = await self._workers.run((queries, k), timeout_s=self._timeout_s)
        except (TimeoutError, WorkerDied) as error:
            raise ToolUnavailable(f"the search index did not answer ({error})") from error
        except RemoteError as error:
            if error.kind == "DataError":
                raise DataError(error.message) from None
            raise
        return msgspec.convert(found, list[list[Hit]])


def serve_index(directory: str) -> Callable[[list[Any]], list[list[Hit]]]:
    """Open an index in a worker process.

    Args:
        directory: The index.

    Returns:
        A function from queries and `k` to hits.
    """
    from icrl.runtime.tools.retrievers.opening import open_index

    index = open_index(Path(directory))
    return lambda request: index.search(*request)
