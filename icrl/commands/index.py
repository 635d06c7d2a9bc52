"""`icrl index CORPUS OUT`: build a search index."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from icrl.config import load
from icrl.errors import ConfigError

__all__ = ["IndexCommand", "main"]

OPTIONS = {"bm25": ("k1", "b", "shards"), "tantivy": (), "dense": ("encoder",)}
"""What only one kind of index knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexCommand:
    """Build an index that the search tool opens."""

    corpus: Annotated[Path, tyro.conf.Positional]
    """JSONL with one document a line: `{"text": …}`, optionally `id` and `title`."""
    out: Annotated[Path, tyro.conf.Positional]
    """Directory to write."""
    backend: Literal["bm25", "tantivy", "dense"] = "bm25"
    """Kind of index: our own, tantivy's (smaller on disk), or vectors of an encoder."""
    k1: float | None = None
    """BM25: how soon repeated words stop counting (1.2)."""
    b: float | None = None
    """BM25: how much long documents are discounted (0.75)."""
    shards: int | None = None
    """BM25: parts to cut the index into (1); the results are the same."""
    encoder: str | None = None
    """Dense: name or directory of a sentence-transformers model, or `module:attribute`."""

    def __post_init__(self) -> None:
        for backend, names in OPTIONS.items():
            for name in names:
                if backend != self.backend and getattr(self, name) is not None:
                    raise ConfigError(f"{name}: is for --backend {backend}, not {self.backend}")
        if self.backend == "dense" and self.encoder is None:
            raise ConfigError("encoder: --backend dense needs one")


def main(argv: Sequence[str]) -> None:
    """Build an index and print the next command."""
    command = load(IndexCommand, argv, prog="icrl index", description="Build a search index.")
    # Elsewhere than on a terminal a progress bar is an empty line.
    documents = _build(command, visible=sys.stderr.isatty())
    out = shlex.quote(str(command.out))
    Console().print(f"{documents:,} documents indexed in {out}")
    Console().print(f"next: icrl train --tasks TASKS.jsonl --index {out} --model MODEL", soft_wrap=True)


def _build(command: IndexCommand, *, visible: bool) -> int:
    """Build the index and return its number of documents."""
    options = {name: getattr(command, name) for name in OPTIONS[command.backend]}
    given = {name: value for name, value in options.items() if value is not None}
    if command.backend == "tantivy":
        from icrl.runtime.tools.retrievers.tantivy import build_tantivy_index

        return build_tantivy_index(command.corpus, command.out, show_progress=visible).documents
    if command.backend == "dense":
        from icrl.runtime.tools.retrievers.dense import build_dense_index

        return build_dense_index(command.corpus, command.out, show_progress=visible, **given).documents
    from icrl.runtime.tools.index import build_index

    return build_index(command.corpus, command.out, show_progress=visible, **given).documents
