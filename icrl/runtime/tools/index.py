"""The search index on disk: built from JSON lines, mapped into memory when opened."""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from icrl.errors import ConfigError, DataError
from icrl.runtime.tools import bm25
from icrl.runtime.tools.corpus import TOKENIZER, Document, Hit, read_corpus, words
from icrl.wire import decode, encode

__all__ = ["Bm25Index", "IndexMeta", "build_index"]

META = "index.json"
DOCUMENTS = "documents.jsonl"
OFFSETS = "offsets.npy"
SWAP_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexMeta:
    """What an index says about itself."""

    format: Literal["icrl-bm25"] = "icrl-bm25"
    """Tells an index from any other directory."""
    version: int = 1
    """Version of the format."""
    tokenizer: str
    """How texts were split into words."""
    k1: float
    """How fast repeated words saturate."""
    b: float
    """How much a document's length counts."""
    documents: int
    """Number of documents."""
    words: int
    """Size of the vocabulary."""
    postings: int
    """Number of pairs of a word and a document that has it."""
    corpus_sha256: str
    """Hash of the corpus file that it was built from."""


def build_index(corpus: Path, out: Path, *, k1: float = 1.2, b: float = 0.75, show_progress: bool = True) -> IndexMeta:
    """Build an index from a corpus of JSON lines (`icrl.runtime.tools.corpus.read_corpus` says which).

    The index appears at `out` only once it is complete; an index that is there already is replaced.

    Args:
        corpus: The JSONL file.
        out: The directory to make.
        k1: How fast repeated words saturate.
        b: How much a document's length counts, 0 to 1.
        show_progress: Whether to draw a progress bar on standard error.

    Raises:
        ConfigError: `k1` or `b` is out of range, or `out` holds something that is not an index.
        DataError: A line of the corpus is broken or there is none, or `out` cannot be written.
        MissingExtraError: The search extra is not installed.
    """
    if not k1 >= 0:
        raise ConfigError(f"k1: must be >= 0, not {k1!r}")
    if not 0 <= b <= 1:
        raise ConfigError(f"b: must be from 0 to 1, not {b!r}")
    out = Path(out).resolve()
    _check_replaceable(out)
    fresh = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        fresh.mkdir(parents=True)
        meta = _write(Path(corpus), fresh, k1=k1, b=b, show_progress=show_progress)
        _install(fresh, out)
    except OSError as error:
        raise DataError(f"{out}: the index cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return meta


def _check_replaceable(out: Path) -> None:
    if not out.exists() or (out.is_dir() and (_is_index(out) or not any(out.iterdir()))):
        return
    raise ConfigError(f"out: {out} exists and is not a search index; choose another directory")


def _is_index(directory: Path) -> bool:
    try:
        return bool(msgspec.json.decode((directory / META).read_bytes())["format"] == "icrl-bm25")
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return False


def _write(corpus: Path, directory: Path, *, k1: float, b: float, show_progress: bool) -> IndexMeta:
    """Write all files of an index, the description last."""
    digest = hashlib.sha256()
    vocabulary: dict[str, int] = {}
    with _progress(corpus, show_progress) as progress:
        reading = progress.add_task("reading", total=corpus.stat().st_size if corpus.is_file() else None)

        def on_line(line: bytes) -> None:
            digest.update(line)
            progress.advance(reading, len(line))

        lists = _copy_documents(directory, read_corpus(corpus, on_line=on_line), vocabulary)
        if not vocabulary:
            raise DataError(f"{corpus}: holds no {'words' if lists else 'documents'}; there is nothing to search")
        progress.add_task("scoring", total=None)
        postings = bm25.save_postings(directory, lists, vocabulary, k1=k1, b=b)
    meta = IndexMeta(
        tokenizer=TOKENIZER,
        k1=k1,
        b=b,
        documents=len(lists),
        words=len(vocabulary),
        postings=postings,
        corpus_sha256=digest.hexdigest(),
    )
    (directory / META).write_bytes(encode(meta) + b"\n")
    return meta


def _progress(corpus: Path, visible: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(f"{corpus.name}: {{task.description}}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not visible, transient=True)


def _copy_documents(directory: Path, documents: Iterator[Document], vocabulary: dict[str, int]) -> list[array[int]]:
    """Write documents and where each begins; fill the vocabulary and return each document's word ids."""
    import numpy as np

    lists = []
    offsets = array("q", [0])
    with (directory / DOCUMENTS).open("wb") as file:
        for document in documents:
            line = encode(document) + b"\n"
            file.write(line)
            offsets.append(offsets[-1] + len(line))
            ids = [vocabulary.setdefault(word, len(vocabulary)) for word in words(document.searchable)]
            lists.append(array("i", ids))
    np.save(directory / OFFSETS, np.frombuffer(offsets, dtype=np.int64))
    return lists


def _install(fresh: Path, out: Path) -> None:
    """Move a complete index to its place; of two builders that finish together, one replaces the other's."""
    old = fresh.with_name(fresh.name + ".old")
    for attempt in range(SWAP_ATTEMPTS):
        with suppress(FileNotFoundError):
            os.rename(out, old)
        try:
            os.rename(fresh, out)
            break
        except OSError:
            if attempt == SWAP_ATTEMPTS - 1:
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


class Bm25Index:
    """An open index: vocabulary in memory, postings and documents mapped from disk.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "corpus.jsonl").write_text('{"text": "The code of Rikor is 113."}')
        >>> _ = build_index(folder / "corpus.jsonl", folder / "index", show_progress=False)
        >>> with_code = Bm25Index.open(folder / "index").search(["code of Rikor"], k=2)[0]
        >>> with_code[0].text
        'The code of Rikor is 113.'
    """

    def __init__(
        self, *, meta: IndexMeta, vocabulary: dict[str, int], ranker: bm25.Ranker, offsets: Any, documents: mmap.mmap
    ) -> None:
        self.meta = meta
        """What the index says about itself."""
        self._vocabulary = vocabulary
        self._ranker = ranker
        self._offsets = offsets
        self._documents = documents

    @classmethod
    def open(cls, directory: Path) -> Bm25Index:
        """Open an index; blocks, and for a large one compiles (seconds), so keep it off the event loop.

        Raises:
            DataError: The directory is no index, is damaged, or was made by another version.
            MissingExtraError: The search extra is not installed.
        """
        directory = Path(directory)
        meta = _read_meta(directory)
        for name in (*bm25.FILES, DOCUMENTS, OFFSETS):
            if not (directory / name).is_file():
                raise DataError(f"{directory}: the index is damaged, {name} is missing; build it again")
        try:
            return cls(meta=meta, **_map(directory, meta))
        except (OSError, ValueError, EOFError, msgspec.MsgspecError) as error:
            raise DataError(f"{directory}: the index is damaged ({error}); build it again") from error

    def __len__(self) -> int:
        """Documents."""
        return self.meta.documents

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
        if k < 1:
            raise ConfigError(f"k: must be >= 1, not {k!r}")
        ids = [[self._vocabulary[w] for w in dict.fromkeys(words(query)) if w in self._vocabulary] for query in queries]
        known = [query for query in ids if query]
        rankings = iter(self._ranker.top(known, k))
        return [[self._hit(*found) for found in next(rankings)] if query else [] for query in ids]

    def document(self, position: int) -> Document:
        """Read one document.

        Args:
            position: From 0, in the order of the corpus.
        """
        line = self._documents[self._offsets[position] : self._offsets[position + 1]]
        return msgspec.json.decode(line, type=Document)

    def _hit(self, position: int, score: float) -> Hit:
        document = self.document(position)
        return Hit(id=document.id, title=document.title, text=document.text, score=score)


def _read_meta(directory: Path) -> IndexMeta:
    path = directory / META
    if not path.is_file():
        raise DataError(
            f"{directory}: is not a search index, {META} is missing; `icrl index corpus.jsonl out/` makes one"
        )
    try:
        meta = decode(path.read_bytes(), IndexMeta)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if (meta.version, meta.tokenizer) != (1, TOKENIZER):
        raise DataError(
            f"{path}: version {meta.version} with tokenizer {meta.tokenizer!r} is not version 1 with {TOKENIZER!r}; "
            "build the index again"
        )
    return meta


def _map(directory: Path, meta: IndexMeta) -> dict[str, Any]:
    import numpy as np

    vocabulary = msgspec.json.decode((directory / bm25.FILES[3]).read_bytes(), type=dict[str, int])
    if len(vocabulary) != meta.words:
        raise ValueError(f"{len(vocabulary)} words instead of {meta.words}")
    ranker = bm25.open_ranker(directory, meta.documents, meta.words)
    offsets = np.asarray(np.load(directory / OFFSETS, mmap_mode="r"))
    with (directory / DOCUMENTS).open("rb") as file:
        documents = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(offsets) != meta.documents + 1 or offsets[-1] != len(documents):
        raise ValueError(f"{DOCUMENTS} does not fit {OFFSETS}")
    return {"vocabulary": vocabulary, "ranker": ranker, "offsets": offsets, "documents": documents}
