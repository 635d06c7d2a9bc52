"""The documents of an index, mapped into memory."""

from __future__ import annotations

import mmap
from array import array
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from icrl.runtime.tools.corpus import Document, Hit
from icrl.wire import encode

__all__ = ["FILES", "DocumentWriter", "Documents"]

FILES = ("documents.jsonl", "offsets.npy")
"""The documents one behind the other, and [N + 1] int64: where each begins."""


class DocumentWriter:
    """Writes documents; the end of the block that it opens finishes the files.

    Args:
        directory: Where to.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets = array("q", [0])
        self._file: BinaryIO = (directory / FILES[0]).open("wb")

    def add(self, document: Document) -> None:
        """Write the next document."""
        line = encode(document) + b"\n"
        self._file.write(line)
        self._offsets.append(self._offsets[-1] + len(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the files."""
        import numpy as np

        self._file.close()
        np.save(self._directory / FILES[1], np.frombuffer(self._offsets, dtype=np.int64))


class Documents:
    """Reads documents by their position.

    Args:
        directory: Where a `DocumentWriter` wrote.

    Raises:
        OSError, ValueError: The files are damaged.
    """

    def __init__(self, directory: Path) -> None:
        import numpy as np

        with (directory / FILES[0]).open("rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._offsets = np.asarray(np.load(directory / FILES[1], mmap_mode="r"))
        if self._offsets[-1] != len(self._lines):
            raise ValueError(f"{FILES[0]} does not fit {FILES[1]}")

    def __len__(self) -> int:
        """Documents."""
        return len(self._offsets) - 1

    def __getitem__(self, position: int) -> Document:
        """Read one document.

        Args:
            position: From 0, in the order of the corpus.
        """
        line = self._lines[self._offsets[position] : self._offsets[position + 1]]
        return msgspec.json.decode(line, type=Document)

    def hit(self, position: int, score: float) -> Hit:
        """Make a hit of a document."""
        document = self[position]
        return Hit(id=document.id, title=document.title, text=document.text, score=score)
