"""`icrl index CORPUS OUT`: build a search index."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from icrl.config import load
from icrl.imports import require

__all__ = ["IndexCommand", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexCommand:
    """Build a BM25 index that the search tool opens."""

    corpus: Annotated[Path, tyro.conf.Positional]
    """JSONL with one document a line: `{"text": …}`, optionally `id` and `title`."""
    out: Annotated[Path, tyro.conf.Positional]
    """Directory to write."""
    k1: float = 1.2
    """BM25: how soon repeated words stop counting."""
    b: float = 0.75
    """BM25: how much long documents are discounted."""


def main(argv: Sequence[str]) -> None:
    """Build an index and print the next command."""
    from icrl.runtime.tools.index import build_index

    command = load(IndexCommand, argv, prog="icrl index", description="Build a search index.")
    require("numpy", "bm25s", extra="search")
    # Elsewhere than on a terminal a progress bar is an empty line.
    visible = sys.stderr.isatty()
    meta = build_index(command.corpus, command.out, k1=command.k1, b=command.b, show_progress=visible)
    out = shlex.quote(str(command.out))
    Console().print(f"{meta.documents:,} documents indexed in {out}")
    Console().print(f"next: icrl train --tasks TASKS.jsonl --index {out} --model MODEL", soft_wrap=True)
