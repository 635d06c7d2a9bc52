"""Ranking with postings whose BM25 scores were computed when the index was built.

Two ways to add them up give the same float32 scores and the same order, ties going to the earlier document. Measured
on one core of two (60 words a document, queries of 5 words):

    documents   numpy               numba (bm25s)
    1,600       0.02 ms a query     0.004 ms a query
    20,000      0.17 ms             0.03 ms
    100,000     0.4 ms              0.1 ms
    500,000     2.2 ms              0.6 ms
    start       none                6 s to compile once on a machine, then 0.5 s a process

so numpy serves indexes below `NUMPY_LIMIT` documents and numba larger ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from icrl.errors import MissingExtraError

__all__ = ["FILES", "NUMPY_LIMIT", "NumbaRanker", "NumpyRanker", "Ranker", "open_ranker", "save_postings"]

NUMPY_LIMIT = 50_000
"""Documents from which compiling pays."""

FILES = ("data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy", "vocab.index.json", "params.index.json")
"""What bm25s writes; such a directory can be opened with bm25s alone, too."""

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
    """Adds up postings with numpy: no start-up cost.

    Scores are sum of idf * tf / (tf + k1 * (1 - b + b * length / mean length)), with
    idf = ln(1 + (N - n + 0.5) / (n + 0.5)): Lucene's variant (Kamphuis et al., ECIR 2020).
    """

    scores: Any
    """[P] float32, the score that a posting contributes; postings of one word lie together."""
    documents: Any
    """[P] int32, the document of each posting."""
    starts: Any
    """[V + 1] int64, where each word's postings begin."""
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
class NumbaRanker:
    """Adds up postings with bm25s' compiled loops, which let other threads run meanwhile."""

    postings: Any
    """A `bm25s.BM25` with the numba backend."""
    exact: NumpyRanker
    """Decides which documents to take where more than fit have the last place's score."""

    def top(self, queries: Sequence[Sequence[int]], k: int) -> list[Ranking]:
        """Rank the documents for each query."""
        import numpy as np

        if not queries:
            return []
        wanted = min(k + 1, self.exact.count)
        found = self.postings.retrieve([list(query) for query in queries], k=wanted, show_progress=False)
        # bm25s keeps whichever of equal documents its heap holds; here the earlier one comes first.
        orders = np.lexsort((found.documents, -found.scores))
        rankings = []
        for query, documents, scores, order in zip(queries, found.documents, found.scores, orders, strict=True):
            ranked = [(int(documents[i]), float(scores[i])) for i in order if scores[i] > 0]
            cut_in_a_tie = len(ranked) > k and ranked[k][1] == ranked[k - 1][1]
            rankings.append(self.exact.top([query], k)[0] if cut_in_a_tie else ranked[:k])
        return rankings


def save_postings(directory: Path, documents: list[Any], vocabulary: dict[str, int], *, k1: float, b: float) -> int:
    """Score every word of every document and write the postings.

    Args:
        directory: Where to write.
        documents: Word ids of each document.
        vocabulary: Word to id, ids counting from 0.
        k1: How fast repeated words saturate.
        b: How much a document's length counts, 0 to 1.

    Returns:
        The number of postings.

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    bm25s = _import_bm25s()
    postings = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
    postings.index((documents, vocabulary), create_empty_token=False, show_progress=False)
    postings.save(directory, show_progress=False)
    return len(postings.scores["data"])


def open_ranker(directory: Path, count: int, words: int) -> Ranker:
    """Map the postings into memory and choose how to add them up.

    Args:
        directory: Where `save_postings` wrote.
        count: Documents.
        words: Size of the vocabulary.

    Raises:
        MissingExtraError: numpy, or bm25s or numba for a large index, is not installed.
        ValueError: The postings are damaged.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtraError("numpy", extra="search") from error
    scores, documents, starts = (np.asarray(np.load(directory / name, mmap_mode="r")) for name in FILES[:3])
    if not len(scores) == len(documents) == starts[-1] or len(starts) != words + 1:
        raise ValueError("the postings do not fit the vocabulary")
    exact = NumpyRanker(scores=scores, documents=documents, starts=starts, count=count)
    return exact if count < NUMPY_LIMIT else _compile(directory, exact)


def _compile(directory: Path, exact: NumpyRanker) -> NumbaRanker:
    bm25s = _import_bm25s()
    _keep_compiled()
    try:
        postings = bm25s.BM25.load(directory, mmap=True, load_vocab=False, show_progress=False, backend="numba")
    except ImportError as error:
        raise MissingExtraError("numba", extra="search") from error
    # bm25s drops word ids that are not in here; a range answers that without a set of all of them.
    postings.unique_token_ids_set = range(len(exact.starts) - 1)
    ranker = NumbaRanker(postings=postings, exact=exact)
    ranker.top([[0]], 1)
    return ranker


def _keep_compiled() -> None:
    """Let numba keep bm25s' compiled loop on disk: the next process starts 12 times as fast."""
    from bm25s.numba import retrieve_utils

    # Without a writable cache directory numba refuses, and every process compiles anew.
    with suppress(AttributeError, RuntimeError, OSError):
        retrieve_utils._retrieve_internal_jitted_serial.enable_caching()


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("bm25s", extra="search") from error
    return bm25s
