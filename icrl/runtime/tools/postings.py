"""From word ids to postings, in bounded memory.

The words of the documents are sorted in runs of a few million, which go to disk. Once all documents are known, and with
them how rare each word is, the runs are merged: every posting's place and score follow from counting alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RUN_WORDS", "Collector", "Statistics", "save_postings"]

RUN_WORDS = 4_000_000
"""Words that are sorted in memory at once; 40 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What the score of a word in a document depends on, besides the two: the same for all shards of a corpus."""

    idf: Any
    """[V] float64, ln(1 + (N - n + 0.5) / (n + 0.5)) by final word id."""
    order: Any
    """[V] int64, the final id of each word by the id that the collectors were given."""
    mean_words: float
    """Mean length of a document."""
    k1: float
    """How fast repeated words saturate."""
    b: float
    """How much a document's length counts."""

    @classmethod
    def of(cls, collectors: Sequence[Collector], vocabulary: Sequence[str], *, k1: float, b: float) -> Statistics:
        """Count over all shards.

        Args:
            collectors: One a shard.
            vocabulary: Words by the id that the collectors were given.
            k1: How fast repeated words saturate.
            b: How much a document's length counts.
        """
        import numpy as np

        order = np.empty(len(vocabulary), dtype=np.int64)
        order[sorted(range(len(vocabulary)), key=vocabulary.__getitem__)] = np.arange(len(vocabulary))
        holders = np.zeros(len(vocabulary))
        for collector in collectors:
            holders[order[: len(collector.holders)]] += collector.holders
        documents = sum(len(collector.lengths) for collector in collectors)
        words = sum(collector.words for collector in collectors)
        idf = np.log1p((documents - holders + 0.5) / (holders + 0.5))
        return cls(idf=idf, order=order, mean_words=words / documents, k1=k1, b=b)


class Collector:
    """Takes the words of a shard's documents, one document after another.

    Args:
        directory: For the runs, which `save_postings` removes.
    """

    def __init__(self, directory: Path) -> None:
        import numpy as np

        self.lengths = array("i")
        """Words of each document."""
        self.words = 0
        """Words of all documents."""
        self.holders = np.zeros(0, dtype=np.int64)
        """Documents that have a word, by word id."""
        self.runs: list[Path] = []
        """Files of word ids, documents and counts, sorted by word and then by document."""
        self._directory = directory
        self._pending = array("i")
        self._first = 0

    def add(self, ids: Sequence[int]) -> None:
        """Take the next document's word ids."""
        self._pending.extend(ids)
        self.lengths.append(len(ids))
        self.words += len(ids)
        if len(self._pending) >= RUN_WORDS:
            self.flush()

    def flush(self) -> None:
        """Sort what is in memory and write it to disk."""
        import numpy as np

        if not self._pending:
            return
        lengths = np.array(self.lengths[self._first :], dtype=np.int64)
        pairs = np.frombuffer(self._pending, dtype=np.int32).astype(np.int64) * len(lengths)
        pairs += np.repeat(np.arange(len(lengths)), lengths)
        pairs, counts = np.unique(pairs, return_counts=True)
        words, documents = np.divmod(pairs, max(1, len(lengths)))
        added = np.bincount(words, minlength=len(self.holders))
        added[: len(self.holders)] += self.holders
        self.holders = added
        self.runs.append(self._directory / f"run-{len(self.runs)}.npy")
        np.save(self.runs[-1], np.stack([words, documents + self._first, counts]).astype(np.int32))
        self._pending, self._first = array("i"), len(self.lengths)


def save_postings(directory: Path, names: tuple[str, str, str], collector: Collector, statistics: Statistics) -> int:
    """Merge the runs of a shard, and remove them.

    Args:
        directory: Where to write.
        names: Files for the scores, the documents, and where each word begins.
        collector: Flushed.
        statistics: Of the whole corpus.

    Returns:
        The number of postings.
    """
    import numpy as np

    holders = np.zeros(len(statistics.order), dtype=np.int64)
    holders[statistics.order[: len(collector.holders)]] = collector.holders
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(holders)])
    np.save(directory / names[2], starts)
    scores, documents = (_create(directory / names[i], int(starts[-1]), kind) for i, kind in ((0, "<f4"), (1, "<i4")))
    lengths = np.frombuffer(collector.lengths, dtype=np.int32)
    norms = statistics.k1 * (1 - statistics.b + statistics.b * lengths / statistics.mean_words)
    free = starts[:-1].copy()
    for path in collector.runs:
        words, holding, counts = np.load(path)
        begins = np.flatnonzero(np.diff(words, prepend=-1))
        sizes = np.diff(begins, append=len(words))
        words = statistics.order[words]
        places = free[words] + np.arange(len(words)) - np.repeat(begins, sizes)
        documents[places] = holding
        scores[places] = statistics.idf[words] * (counts / (counts + norms[holding]))
        free[words[begins]] += sizes
        path.unlink()
    return int(starts[-1])


def _create(path: Path, length: int, kind: str) -> Any:
    """Make a file that holds an array, and map it; an empty one cannot be mapped."""
    import numpy as np

    if length:
        return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(length,))
    np.save(path, np.zeros(0, dtype=kind))
    return np.zeros(0, dtype=kind)
