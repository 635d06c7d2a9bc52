"""Ranking with postings whose BM25 scores were computed when the index was built.

Scores are sums of idf * tf / (tf + k1 * (1 - b + b * length / mean length)), with idf = ln(1 + (N - n + 0.5) / (n +
0.5)): Lucene's variant (Kamphuis et al., ECIR 2020).

Two ways to add them up give the same float32 scores and the same order, ties going to the earlier document. One costs
nothing to start; the other costs some seconds to compile once on a machine, then half a second a process, and is ten to
fifty times as fast. So numpy serves indexes below `NUMPY_LIMIT` documents and compiled code larger ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from icrl.errors import MissingExtraError
from icrl.imports import require

__all__ = ["FILES", "NUMPY_LIMIT", "CompiledRanker", "NumpyRanker", "Ranker", "Ranking", "open_ranker"]

NUMPY_LIMIT = 50_000
"""Documents from which compiling pays."""

FILES = ("scores.npy", "documents.npy", "starts.npy")
"""[P] float32, what each posting adds to its document's score; [P] int32, the document; [V + 1] int64, where each
word's postings begin."""

Ranking = list[tuple[int, float]]
"""Documents and their scores, best first."""


class Ranker(Protocol):
    """Finds the documents that fit word ids best."""

    def top(self, queries: Sequence[Sequence[int]], k: int) -> list[Ranking]:
        """Rank the documents for each query.

        Args:
            queries: Distinct word ids of each query.
            k: How many documents to return at most; those with score 0 are left out.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NumpyRanker:
    """Adds up postings with numpy: no start-up cost."""

    scores: Any
    """[P] float32."""
    documents: Any
    """[P] int32."""
    starts: Any
    """[V + 1] int64."""
    count: int
    """Documents."""

    def top(self, queries: Sequence[Sequence[int]], k: int) -> list[Ranking]:
        """Rank the documents for each query."""
        return [self._rank(query, k) for query in queries]

    def _rank(self, query: Sequence[int], k: int) -> Ranking:
        import numpy as np

        totals = np.zeros(self.count, dtype=np.float32)
        for word in query:
            postings = slice(self.starts[word], self.starts[word + 1])
            totals[self.documents[postings]] += self.scores[postings]
        found = np.flatnonzero(totals)
        if len(found) > k:
            worst = np.partition(totals[found], len(found) - k)[len(found) - k]
            found = found[totals[found] >= worst]
        order = np.argsort(-totals[found], kind="stable")[:k]
        return [(int(document), float(totals[document])) for document in found[order]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledRanker:
    """Adds up postings in compiled code, which lets other threads run meanwhile."""

    scores: Any
    """[P] float32."""
    documents: Any
    """[P] int32."""
    starts: Any
    """[V + 1] int64."""
    totals: Any
    """[N] float32 zeros, to add up in."""
    _lock: Lock = field(default_factory=Lock)

    def top(self, queries: Sequence[Sequence[int]], k: int) -> list[Ranking]:
        """Rank the documents for each query."""
        with self._lock:
            return [self._rank(query, min(k, len(self.totals))) for query in queries]

    def _rank(self, query: Sequence[int], k: int) -> Ranking:
        import numpy as np

        from icrl.runtime.tools.bm25_kernel import rank

        words = np.array(query, dtype=np.int64)
        best, best_scores = np.empty(k, dtype=np.int64), np.empty(k, dtype=np.float32)
        found = rank(words, self.starts, self.documents, self.scores, self.totals, best, best_scores)
        return list(zip(best[:found].tolist(), best_scores[:found].tolist(), strict=True))


def open_ranker(directory: Path, count: int, words: int) -> Ranker:
    """Map postings into memory and choose how to add them up.

    Args:
        directory: Where `icrl.runtime.tools.postings.save_postings` wrote them as `FILES`.
        count: Documents.
        words: Size of the vocabulary.

    Raises:
        MissingExtraError: numpy, or numba for a large index, is not installed.
        ValueError: The postings are damaged.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtraError("numpy", extra="search") from error
    scores, documents, starts = (_map(directory / name) for name in FILES)
    if not len(scores) == len(documents) == starts[-1] or len(starts) != words + 1:
        raise ValueError("the postings do not fit the vocabulary")
    if count < NUMPY_LIMIT:
        return NumpyRanker(scores=scores, documents=documents, starts=starts, count=count)
    require("numba", extra="search")
    totals = np.zeros(count, dtype=np.float32)
    ranker = CompiledRanker(scores=scores, documents=documents, starts=starts, totals=totals)
    ranker.top([[0]], 1)  # compiles
    return ranker


def _map(path: Path) -> Any:
    """Map an array; an empty one cannot be mapped."""
    import numpy as np

    array = np.load(path, mmap_mode="r" if path.stat().st_size > _EMPTY_BYTES else None)
    return np.asarray(array)


_EMPTY_BYTES = 128
"""Size of a file that holds an empty array: its header."""
