"""Search by meaning: documents and queries as vectors of an encoder, compared by their cosine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from icrl.errors import ConfigError, DataError
from icrl.imports import import_attribute, require
from icrl.runtime.tools.building import CorpusReader, reading, replacing
from icrl.runtime.tools.corpus import Document, Hit
from icrl.runtime.tools.documents import Documents, DocumentWriter
from icrl.runtime.tools.index_meta import digest, read_meta, sizes, write_meta
from icrl.runtime.tools.retrievers.protocol import check_k

__all__ = ["EXACT_LIMIT", "DenseIndex", "DenseMeta", "Encoder", "build_dense_index", "open_encoder"]

Encoder = Callable[[Sequence[str]], Any]
"""Texts to vectors: [n, d] floats, not all zero."""

EXACT_LIMIT = 50_000
"""Documents from which a graph is searched in place of all vectors; it finds nearly all of the nearest."""
VECTORS, GRAPH = "vectors.npy", "graph.bin"
BATCH = 64
GRAPH_LINKS, GRAPH_EFFORT, SEARCH_EFFORT = 16, 200, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMeta:
    """What a dense index says about itself."""

    format: Literal["icrl-dense"] = "icrl-dense"
    """Tells an index from any other directory."""
    version: int = 1
    """Version of the format."""
    encoder: str
    """`module:attribute` of an encoder, or the name or directory of a sentence-transformers model."""
    query_prefix: str
    """Stands before every query."""
    document_prefix: str
    """Stood before every document."""
    dimensions: int
    """Length of a vector."""
    documents: int
    """Number of documents."""
    corpus_sha256: str
    """Hash of the corpus file that it was built from."""
    files: Mapping[str, int]
    """Size in bytes of every file."""

    @property
    def fingerprint(self) -> str:
        """Names whatever decides what a search finds."""
        return digest(self.format, self.encoder, self.query_prefix, self.document_prefix, self.corpus_sha256)


def build_dense_index(
    corpus: Path,
    out: Path,
    *,
    encoder: str,
    query_prefix: str = "",
    document_prefix: str = "",
    show_progress: bool = True,
) -> DenseMeta:
    """Encode a corpus of JSON lines; like `icrl.runtime.tools.index.build_index`.

    Args:
        corpus: The JSONL file.
        out: The directory to make; an index that is there is replaced.
        encoder: `module:attribute` of an `Encoder`, or the name or directory of a sentence-transformers model. It is
            opened again by this name wherever the index is.
        query_prefix: What the encoder wants before a query, such as `"query: "`.
        document_prefix: What it wants before a document.
        show_progress: Whether to draw a progress bar on standard error.

    Raises:
        ConfigError: There is no such encoder, or `out` holds something that is not an index.
        DataError: A line of the corpus is broken or there is none, or `out` cannot be written.
        MissingExtraError: The dense extra is not installed.
    """
    require("numpy", extra="dense")
    encode = open_encoder(encoder)
    with replacing(out) as directory, reading(corpus, show_progress=show_progress) as reader:
        dimensions = _write(reader, directory, lambda d: encode([document_prefix + one.searchable for one in d]))
        meta = DenseMeta(
            encoder=encoder,
            query_prefix=query_prefix,
            document_prefix=document_prefix,
            dimensions=dimensions,
            documents=reader.documents,
            corpus_sha256=reader.sha256,
            files=sizes(directory),
        )
        write_meta(directory, meta)
    return meta


def open_encoder(name: str) -> Encoder:
    """Import or load an encoder; blocks.

    Args:
        name: `module:attribute`, or the name or directory of a sentence-transformers model.

    Raises:
        ConfigError: There is no such encoder.
        MissingExtraError: sentence-transformers is not installed.
    """
    if ":" in name:
        found: Encoder = import_attribute(name, setting="encoder")
        return found
    require("sentence_transformers", extra="dense")
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoder: {name!r} cannot be loaded ({str(error).splitlines()[0]})") from error
    return lambda texts: model.encode(list(texts), batch_size=BATCH, show_progress_bar=False)


def _write(reader: CorpusReader, directory: Path, encode: Callable[[Sequence[Document]], Any]) -> int:
    """Write documents, vectors and, for many, the graph; return the length of a vector."""
    import numpy as np

    pending: list[Document] = []
    parts: list[Any] = []
    with DocumentWriter(directory) as writer:
        for document in reader:
            writer.add(document)
            pending.append(document)
            if len(pending) == BATCH:
                parts.append(_normalise(encode(pending)))
                pending = []
    if pending:
        parts.append(_normalise(encode(pending)))
    vectors = np.concatenate(parts)
    if len(vectors) >= EXACT_LIMIT:
        reader.progress.add_task("linking", total=None)
        _link(vectors, directory / GRAPH)
    np.save(directory / VECTORS, vectors)
    return int(vectors.shape[1])


def _normalise(vectors: Any) -> Any:
    """Scale vectors to length 1.

    Raises:
        DataError: The encoder returned something that is no such table, or has no direction.
    """
    import numpy as np

    table = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(table, axis=-1, keepdims=True) if table.ndim == 2 else np.zeros(1)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise DataError(f"encoder: returned shape {table.shape}, or vectors that are zero or not finite")
    return table / lengths


def _link(vectors: Any, path: Path) -> None:
    graph = _graph(vectors.shape[1])
    graph.init_index(max_elements=len(vectors), M=GRAPH_LINKS, ef_construction=GRAPH_EFFORT, random_seed=0)
    # With one thread the same corpus gives the same graph.
    graph.add_items(vectors, num_threads=1)
    graph.save_index(str(path))


def _graph(dimensions: int) -> Any:
    require("hnswlib", extra="dense")
    import hnswlib

    return hnswlib.Index(space="ip", dim=dimensions)


class DenseIndex:
    """An open dense index.

    Scores are cosines. Below `EXACT_LIMIT` documents all of them are compared; above, a graph is searched (HNSW, Malkov
    and Yashunin 2018).
    """

    def __init__(self, *, meta: DenseMeta, vectors: Any, graph: Any, documents: Documents, encoder: Encoder) -> None:
        self.meta = meta
        """What the index says about itself."""
        self._vectors = vectors
        self._graph = graph
        self._documents = documents
        self._encoder = encoder

    @classmethod
    def open(cls, directory: Path) -> DenseIndex:
        """Open an index and its encoder; blocks.

        Raises:
            ConfigError: The encoder cannot be found.
            DataError: The directory is no such index, or is damaged.
            MissingExtraError: The dense extra is not installed.
        """
        require("numpy", extra="dense")
        import numpy as np

        meta = read_meta(directory, DenseMeta)
        graph = None
        try:
            vectors, documents = np.load(directory / VECTORS, mmap_mode="r"), Documents(directory)
            if vectors.shape != (meta.documents, meta.dimensions):
                raise ValueError(f"vectors of shape {vectors.shape}")
            if GRAPH in meta.files:
                graph = _graph(meta.dimensions)
                graph.load_index(str(directory / GRAPH))
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{directory}: the index is damaged ({error}); build it again with `icrl index`") from error
        encoder = open_encoder(meta.encoder)
        return cls(meta=meta, vectors=vectors, graph=graph, documents=documents, encoder=encoder)

    def __len__(self) -> int:
        """Documents."""
        return self.meta.documents

    @property
    def fingerprint(self) -> str:
        """Names whatever decides what a search finds."""
        return self.meta.fingerprint

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find the documents whose vectors are nearest; blocks for as long as it computes.

        Raises:
            ConfigError: `k` is less than 1.
            DataError: The encoder's vectors are not those of the index.
        """
        check_k(k)
        if not queries:
            return []
        vectors = _normalise(self._encoder([self.meta.query_prefix + query for query in queries]))
        if vectors.shape != (len(queries), self.meta.dimensions):
            raise DataError(
                f"encoder: returned shape {vectors.shape} for {len(queries)} queries of {self.meta.dimensions}"
            )
        k = min(k, len(self))
        positions, scores = self._compare(vectors, k) if self._graph is None else self._walk(vectors, k)
        return [
            [self._documents.hit(int(position), float(score)) for position, score in zip(*row, strict=True)]
            for row in zip(positions, scores, strict=True)
        ]

    def _compare(self, vectors: Any, k: int) -> tuple[Any, Any]:
        import numpy as np

        scores = vectors @ np.asarray(self._vectors).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(scores, order, axis=1)

    def _walk(self, vectors: Any, k: int) -> tuple[Any, Any]:
        self._graph.set_ef(max(SEARCH_EFFORT, k))
        positions, distances = self._graph.knn_query(vectors, k=k, num_threads=1)
        return positions, 1 - distances
