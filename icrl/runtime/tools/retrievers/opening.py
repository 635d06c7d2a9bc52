"""From a directory or an address to a retriever."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from icrl.errors import ConfigError, DataError
from icrl.runtime.tools.index_meta import IndexMeta, format_of, read_meta
from icrl.runtime.tools.retrievers.pool import PoolRetriever
from icrl.runtime.tools.retrievers.protocol import Index, Retriever
from icrl.runtime.tools.retrievers.thread import ThreadRetriever

__all__ = ["POOL_LIMIT", "open_index", "open_retriever"]

POOL_LIMIT = 100_000
"""Documents from which a BM25 index gets processes of its own."""
MOST_PROCESSES = 4
KEY_VARIABLE = "ICRL_RETRIEVER_KEY"
KINDS = {
    "icrl-bm25": ("icrl.runtime.tools.index", "Bm25Index", "IndexMeta"),
    "icrl-tantivy": ("icrl.runtime.tools.retrievers.tantivy", "TantivyIndex", "TantivyMeta"),
    "icrl-dense": ("icrl.runtime.tools.retrievers.dense", "DenseIndex", "DenseMeta"),
}
"""Where to find the classes of an index and of its description, by what the directory says of itself."""


def open_retriever(index: str | Path, *, processes: int | None = None, api_key: str | None = None) -> Retriever:
    """Open whatever a setting names; blocks while it reads files, so keep it off the event loop.

    Args:
        index: Directory of an index of any kind, or the address of a server that speaks the `/retrieve` protocol.
        processes: Readers of a directory; 0 searches in a thread of this process. By default an index is searched in
            a thread, and a BM25 index of at least `POOL_LIMIT` documents by as many readers as there are cores, 4 at
            most.
        api_key: For an address; the variable ICRL_RETRIEVER_KEY, if not given.

    Raises:
        ConfigError: `processes` is less than 0, or given for an address.
        DataError: The directory is no index, or is damaged.
        MissingExtraError: The index needs a package that is not installed.
    """
    if processes is not None and processes < 0:
        raise ConfigError(f"processes: must be >= 0, not {processes!r}")
    if str(index).startswith(("http://", "https://")):
        if processes is not None:
            raise ConfigError(f"processes: {processes} cannot be set for {index}; the server there has its own")
        from icrl.runtime.tools.retrievers.remote import HttpRetriever

        return HttpRetriever(str(index), api_key=api_key or os.environ.get(KEY_VARIABLE))
    directory = Path(index).expanduser()
    wanted = _processes(directory) if processes is None else processes
    if wanted == 0:
        return ThreadRetriever(open_index(directory))
    _, meta = _kind(directory)
    fingerprint = read_meta(directory, meta).fingerprint
    return PoolRetriever(directory.absolute(), fingerprint=fingerprint, processes=wanted)


def open_index(directory: Path) -> Index:
    """Open an index of any kind; blocks, and for a large one compiles (seconds).

    Raises:
        DataError: The directory is no index, is damaged, or was made by another version.
        MissingExtraError: A package that the index needs is not installed.
    """
    index, _ = _kind(directory)
    opened: Index = index.open(directory)
    return opened


def _kind(directory: Path) -> tuple[Any, Any]:
    """Return the classes of an index and of its description."""
    kind = format_of(directory)
    if kind not in KINDS:
        raise DataError(f"{directory}: holds an index of an unknown kind, {kind!r}")
    module, index, meta = KINDS[kind]
    found = import_module(module)
    return getattr(found, index), getattr(found, meta)


def _processes(directory: Path) -> int:
    if format_of(directory) != "icrl-bm25" or read_meta(directory, IndexMeta).documents < POOL_LIMIT:
        return 0
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
