"""The BM25 index on disk: built from JSON lines in bounded memory, mapped into memory when opened.

    index.json                      description: parameters, hash of the corpus, sizes of the files
    words.txt, words.npy            vocabulary
    0/, 1/, …                       shards: consecutive parts of the corpus, each with postings and documents

Scores are computed when the index is built, and with the figures of the whole corpus. So they can be compared across
shards, and the documents found do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from icrl.errors import ConfigError, DataError
from icrl.imports import require
from icrl.runtime.tools import bm25
from icrl.runtime.tools.building import CorpusReader, reading, replacing
from icrl.runtime.tools.corpus import Document, Hit, words
from icrl.runtime.tools.documents import Documents, DocumentWriter
from icrl.runtime.tools.index_meta import IndexMeta, read_meta, sizes, write_meta
from icrl.runtime.tools.postings import Collector, Statistics, save_postings
from icrl.runtime.tools.retrievers.protocol import check_k
from icrl.runtime.tools.vocabulary import Vocabulary, write_vocabulary

__all__ = ["Bm25Index", "IndexMeta", "build_index"]


def build_index(
    corpus: Path, out: Path, *, k1: float = 1.2, b: float = 0.75, shards: int = 1, show_progress: bool = True
) -> IndexMeta:
    """Build an index from a corpus of JSON lines (`icrl.runtime.tools.corpus.read_corpus` says which).

    The index appears at `out` only once it is complete; an index that is there already is replaced.

    Args:
        corpus: The JSONL file.
        out: The directory to make.
        k1: How fast repeated words saturate.
        b: How much a document's length counts, 0 to 1.
        shards: Parts to cut the index into, of about equal size in bytes of the corpus; fewer where documents are few.
        show_progress: Whether to draw a progress bar on standard error.

    Raises:
        ConfigError: `k1`, `b` or `shards` is out of range, or `out` holds something that is not an index.
        DataError: A line of the corpus is broken or there is none, or `out` cannot be written.
        MissingExtraError: The search extra is not installed.
    """
    if not k1 >= 0:
        raise ConfigError(f"k1: must be >= 0, not {k1!r}")
    if not 0 <= b <= 1:
        raise ConfigError(f"b: must be from 0 to 1, not {b!r}")
    if shards < 1:
        raise ConfigError(f"shards: must be >= 1, not {shards!r}")
    require("numpy", extra="search")
    with replacing(out) as directory, reading(corpus, show_progress=show_progress) as reader:
        meta = _write(reader, directory, k1=k1, b=b, shards=shards)
        write_meta(directory, meta)
    return meta


def _write(reader: CorpusReader, directory: Path, *, k1: float, b: float, shards: int) -> IndexMeta:
    """Write all files of an index but the description."""
    vocabulary: dict[str, int] = {}
    collectors = _collect(reader, directory, vocabulary, shards)
    if not vocabulary:
        raise DataError(f"{reader.path}: holds no words; there is nothing to search")
    reader.progress.add_task("scoring", total=None)
    write_vocabulary(directory, sorted(vocabulary))
    statistics = Statistics.of(collectors, list(vocabulary), k1=k1, b=b)
    del vocabulary
    postings = [
        save_postings(directory / str(shard), bm25.FILES, collector, statistics)
        for shard, collector in enumerate(collectors)
    ]
    return IndexMeta(
        k1=k1,
        b=b,
        documents=reader.documents,
        words=len(statistics.order),
        postings=sum(postings),
        corpus_sha256=reader.sha256,
        shards=tuple(len(collector.lengths) for collector in collectors),
        files=sizes(directory),
    )


def _collect(reader: CorpusReader, directory: Path, vocabulary: dict[str, int], shards: int) -> list[Collector]:
    """Write the documents, fill the vocabulary, and return the words of each shard."""
    collectors: list[Collector] = []
    writer: DocumentWriter | None = None
    part = -1
    with ExitStack() as stack:
        for document in reader:
            # A shard takes the documents that begin in its part of the file; parts where none begins get no shard.
            if writer is None or reader.start * shards // reader.size > part:
                part = reader.start * shards // reader.size
                stack.close()
                place = directory / str(len(collectors))
                place.mkdir()
                writer = stack.enter_context(DocumentWriter(place))
                collectors.append(Collector(place))
                stack.callback(collectors[-1].flush)
            writer.add(document)
            collectors[-1].add([vocabulary.setdefault(word, len(vocabulary)) for word in words(document.searchable)])
    return collectors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    first: int
    documents: Documents
    ranker: bm25.Ranker


class Bm25Index:
    """An open index: postings, vocabulary and documents are mapped into memory, not read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "corpus.jsonl").write_text('{"text": "The code of Rikor is 113."}')
        >>> _ = build_index(folder / "corpus.jsonl", folder / "index", show_progress=False)
        >>> Bm25Index.open(folder / "index").search(["rikor's code"], k=1)[0][0].text
        'The code of Rikor is 113.'
    """

    def __init__(self, *, meta: IndexMeta, vocabulary: Vocabulary, shards: Sequence[_Shard]) -> None:
        self.meta = meta
        """What the index says about itself."""
        self._vocabulary = vocabulary
        self._shards = shards

    @classmethod
    def open(cls, directory: Path) -> Bm25Index:
        """Open an index; blocks, and for a large one compiles (seconds), so keep it off the event loop.

        Raises:
            DataError: The directory is no index, is damaged, or was made by another version.
            MissingExtraError: The search extra is not installed.
        """
        directory = Path(directory)
        meta = read_meta(directory, IndexMeta)
        require("numpy", extra="search")
        try:
            vocabulary = Vocabulary(directory)
            if len(vocabulary) != meta.words:
                raise ValueError(f"{len(vocabulary)} words instead of {meta.words}")
            shards = [_open_shard(directory / str(i), meta, i) for i in range(len(meta.shards))]
        except (OSError, ValueError, EOFError, msgspec.MsgspecError) as error:
            raise DataError(f"{directory}: the index is damaged ({error}); build it again with `icrl index`") from error
        return cls(meta=meta, vocabulary=vocabulary, shards=shards)

    def __len__(self) -> int:
        """Documents."""
        return self.meta.documents

    @property
    def fingerprint(self) -> str:
        """Names whatever decides what a search finds."""
        return self.meta.fingerprint

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find the documents that fit best; blocks for as long as it computes.

        Every distinct word of a query counts once. Documents that share no word with it are not returned; of equal
        ones the earlier comes first.

        Args:
            queries: Texts.
            k: Documents per query at most.

        Raises:
            ConfigError: `k` is less than 1.
        """
        check_k(k)
        ids = [
            [i for word in dict.fromkeys(words(query)) if (i := self._vocabulary.find(word)) is not None]
            for query in queries
        ]
        known = [query for query in ids if query]
        found = zip(*(shard.ranker.top(known, k) for shard in self._shards), strict=True)
        return [self._merge(next(found), k) if query else [] for query in ids]

    def _merge(self, rankings: Sequence[bm25.Ranking], k: int) -> list[Hit]:
        """Join what the shards found; sorting is stable, and the shards are in the order of the corpus."""
        parts = zip(self._shards, rankings, strict=True)
        joined = [(shard, position, score) for shard, ranking in parts for position, score in ranking]
        if len(rankings) > 1:
            joined.sort(key=lambda found: -found[2])
        return [shard.documents.hit(position, score) for shard, position, score in joined[:k]]

    def document(self, position: int) -> Document:
        """Read one document.

        Args:
            position: From 0, in the order of the corpus.
        """
        shard = next(shard for shard in reversed(self._shards) if shard.first <= position)
        return shard.documents[position - shard.first]


def _open_shard(directory: Path, meta: IndexMeta, number: int) -> _Shard:
    documents = Documents(directory)
    if len(documents) != meta.shards[number]:
        raise ValueError(f"{len(documents)} documents in {directory.name} instead of {meta.shards[number]}")
    ranker = bm25.open_ranker(directory, len(documents), meta.words)
    return _Shard(first=sum(meta.shards[:number]), documents=documents, ranker=ranker)
