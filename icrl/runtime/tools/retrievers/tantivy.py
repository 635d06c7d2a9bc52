"""A tantivy index behind the same protocol: a third of the disk, several times the time of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from icrl.errors import DataError
from icrl.imports import require
from icrl.runtime.tools.building import CorpusReader, reading, replacing
from icrl.runtime.tools.corpus import TOKENIZER, Hit, words
from icrl.runtime.tools.documents import Documents, DocumentWriter
from icrl.runtime.tools.index_meta import digest, read_meta, sizes, write_meta
from icrl.runtime.tools.retrievers.protocol import check_k

__all__ = ["TantivyIndex", "TantivyMeta", "build_tantivy_index"]

DIRECTORY = "tantivy"
BODY, POSITION = "body", "position"


@dataclass(frozen=True, slots=True, kw_only=True)
class TantivyMeta:
    """What a tantivy index says about itself."""

    format: Literal["icrl-tantivy"] = "icrl-tantivy"
    """Tells an index from any other directory."""
    version: int = 1
    """Version of the format."""
    tokenizer: str = TOKENIZER
    """How texts were split into words."""
    documents: int
    """Number of documents."""
    corpus_sha256: str
    """Hash of the corpus file that it was built from."""
    files: Mapping[str, int]
    """Size in bytes of every file."""

    @property
    def fingerprint(self) -> str:
        """Names whatever decides what a search finds."""
        return digest(self.format, self.tokenizer, self.corpus_sha256)


def build_tantivy_index(corpus: Path, out: Path, *, writer_mb: int = 200, show_progress: bool = True) -> TantivyMeta:
    """Build a tantivy index from a corpus of JSON lines; like `icrl.runtime.tools.index.build_index`.

    Scores are tantivy's: BM25 with k1 = 1.2 and b = 0.75, with field lengths rounded.

    Args:
        corpus: The JSONL file.
        out: The directory to make; an index that is there is replaced.
        writer_mb: Memory of the writer in MiB.
        show_progress: Whether to draw a progress bar on standard error.

    Raises:
        ConfigError: `out` holds something that is not an index.
        DataError: A line of the corpus is broken or there is none, or `out` cannot be written.
        MissingExtraError: tantivy is not installed.
    """
    require("tantivy", "numpy", extra="tantivy")
    with replacing(out) as directory, reading(corpus, show_progress=show_progress) as reader:
        _write(reader, directory, writer_mb)
        meta = TantivyMeta(documents=reader.documents, corpus_sha256=reader.sha256, files=sizes(directory))
        write_meta(directory, meta)
    return meta


def _write(reader: CorpusReader, directory: Path, writer_mb: int) -> None:
    import tantivy

    (directory / DIRECTORY).mkdir()
    # One thread, because several would cut the corpus into segments at random.
    writer = tantivy.Index(_schema(), str(directory / DIRECTORY)).writer(writer_mb * 2**20, 1)
    with DocumentWriter(directory) as documents:
        for position, document in enumerate(reader):
            documents.add(document)
            entry = tantivy.Document()
            entry.add_text(BODY, " ".join(words(document.searchable)))
            # `Document(position=…)` would add a signed number, which ends the writer's thread.
            entry.add_unsigned(POSITION, position)
            writer.add_document(entry)
    writer.commit()
    writer.wait_merging_threads()


def _schema() -> Any:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field(BODY, stored=False, tokenizer_name="whitespace", index_option="freq")
    builder.add_unsigned_field(POSITION, stored=True, indexed=False)
    return builder.build()


class TantivyIndex:
    """An open tantivy index.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "corpus.jsonl").write_text('{"text": "The code of Rikor is 113."}')
        >>> _ = build_tantivy_index(folder / "corpus.jsonl", folder / "index", show_progress=False)
        >>> TantivyIndex.open(folder / "index").search(["rikor's code"], k=1)[0][0].text
        'The code of Rikor is 113.'
    """

    def __init__(self, *, meta: TantivyMeta, index: Any, documents: Documents) -> None:
        self.meta = meta
        """What the index says about itself."""
        self._schema = index.schema
        self._searcher = index.searcher()
        self._documents = documents

    @classmethod
    def open(cls, directory: Path) -> TantivyIndex:
        """Open an index; blocks.

        Raises:
            DataError: The directory is no such index, or is damaged.
            MissingExtraError: tantivy is not installed.
        """
        require("tantivy", "numpy", extra="tantivy")
        import tantivy

        meta = read_meta(directory, TantivyMeta)
        try:
            documents, index = Documents(directory), tantivy.Index.open(str(directory / DIRECTORY))
        except (OSError, ValueError) as error:
            raise DataError(f"{directory}: the index is damaged ({error}); build it again with `icrl index`") from error
        return cls(meta=meta, index=index, documents=documents)

    def __len__(self) -> int:
        """Documents."""
        return self.meta.documents

    @property
    def fingerprint(self) -> str:
        """Names whatever decides what a search finds."""
        return self.meta.fingerprint

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find the documents that fit best; blocks for as long as it computes.

        Raises:
            ConfigError: `k` is less than 1.
        """
        check_k(k)
        return [self._search(list(dict.fromkeys(words(query))), k) for query in queries]

    def _search(self, terms: Sequence[str], k: int) -> list[Hit]:
        import tantivy

        # Built from words, and never parsed from text in which a model could write operators.
        clauses = [(tantivy.Occur.Should, tantivy.Query.term_query(self._schema, BODY, term, "freq")) for term in terms]
        found = self._searcher.search(tantivy.Query.boolean_query(clauses), k, count=False)
        return [self._documents.hit(self._position(address), score) for score, address in found.hits]

    def _position(self, address: Any) -> int:
        return int(self._searcher.doc(address)[POSITION][0])
