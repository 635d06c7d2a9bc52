"""Several retrievers as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from icrl.errors import ConfigError
from icrl.runtime.tools.corpus import Hit
from icrl.runtime.tools.index_meta import digest
from icrl.runtime.tools.retrievers.protocol import Retriever, check_k, fingerprint_of
from icrl.runtime.tools.tool import close

__all__ = ["FusedRetriever", "fuse"]

RRF_K = 60
"""The constant of Cormack, Clarke and Büttcher."""


class FusedRetriever:
    """Asks several retrievers at once and joins what they find by reciprocal rank fusion (Cormack et al., SIGIR 2009).

    A document's score is the sum of 1 / (60 + rank) over the retrievers that found it, so scores of different scales do
    not matter. The retrievers have to name the same documents by the same ids.

    Args:
        retrievers: Whom to ask; with equal scores, the earlier one's documents come first.
        depth: Documents to ask each of them for, `k` at least.

    Raises:
        ConfigError: There is no retriever, or `depth` is less than 1.
    """

    def __init__(self, retrievers: Sequence[Retriever], *, depth: int = 100) -> None:
        if not retrievers:
            raise ConfigError("retrievers: there must be one at least")
        if depth < 1:
            raise ConfigError(f"depth: must be >= 1, not {depth!r}")
        self._retrievers = tuple(retrievers)
        self._depth = depth

    @property
    def fingerprint(self) -> str | None:
        """Names whatever decides what a search finds, if all retrievers say so of themselves."""
        parts = [fingerprint_of(retriever) for retriever in self._retrievers]
        return None if None in parts else digest("fused", self._depth, parts)

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find at most `k` documents for each query, best first.

        Raises:
            ConfigError: `k` is less than 1.
            ToolUnavailable: One of the retrievers does not answer.
        """
        check_k(k)
        depth = max(k, self._depth)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_attempt(retriever, queries, depth)) for retriever in self._retrievers]
        found = [task.result() for task in tasks]
        for one in found:
            if isinstance(one, Exception):
                raise one
        lists = [one for one in found if not isinstance(one, Exception)]
        return [fuse([rankings[i] for rankings in lists], k) for i in range(len(queries))]

    async def aclose(self) -> None:
        """Close the retrievers."""
        for retriever in self._retrievers:
            await close(retriever)


async def _attempt(retriever: Retriever, queries: Sequence[str], k: int) -> list[list[Hit]] | Exception:
    """Return an error instead of raising it, which would come out of the group as something else."""
    try:
        return await retriever.search(queries, k)
    except Exception as error:
        return error


def fuse(rankings: Sequence[Sequence[Hit]], k: int) -> list[Hit]:
    """Join rankings of the same documents by reciprocal rank fusion.

    Args:
        rankings: Each best first.
        k: How many documents to return at most.

    Example:
        >>> a, b, c = (Hit(id=name, title="", text="", score=0.0) for name in "abc")
        >>> [hit.id for hit in fuse([[a, b], [b, c]], 2)]
        ['b', 'a']
    """
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.id] = scores.get(hit.id, 0.0) + 1 / (RRF_K + rank)
            hits.setdefault(hit.id, hit)
    best = sorted(scores, key=lambda name: -scores[name])[:k]
    return [Hit(id=name, title=hits[name].title, text=hits[name].text, score=scores[name]) for name in best]
