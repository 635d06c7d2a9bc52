"""The words of an index, mapped into memory: a process that opens an index reads none of them."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

__all__ = ["FILES", "Vocabulary", "write_vocabulary"]

FILES = ("words.txt", "words.npy")
"""All words in order without anything between them, and where each begins."""
REMEMBERED = 2**16


def write_vocabulary(directory: Path, words: Iterable[str]) -> None:
    """Write words.

    Args:
        directory: Where to.
        words: Distinct, at least one, sorted.
    """
    import numpy as np

    encoded = [_encode(word) for word in words]
    (directory / FILES[0]).write_bytes(b"".join(encoded))
    np.save(directory / FILES[1], np.array([0, *accumulate(map(len, encoded))], dtype=np.int64))


class Vocabulary:
    """Numbers words in their order.

    Args:
        directory: Where `write_vocabulary` wrote.

    Raises:
        OSError, ValueError: The files are damaged.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> write_vocabulary(directory, ["code", "mayor"])
        >>> vocabulary = Vocabulary(directory)
        >>> vocabulary.find("mayor"), vocabulary.find("nothing"), len(vocabulary)
        (1, None, 2)
    """

    def __init__(self, directory: Path) -> None:
        import numpy as np

        with (directory / FILES[0]).open("rb") as file:
            self._words = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        starts: Any = np.asarray(np.load(directory / FILES[1], mmap_mode="r"))
        # Its elements are plain integers, which slices take faster than numpy's.
        self._starts = memoryview(starts)
        if self._starts[-1] != len(self._words):
            raise ValueError(f"{FILES[0]} does not fit {FILES[1]}")
        self.find = lru_cache(maxsize=REMEMBERED)(self._find)
        """Return a word's number, or `None` for an unknown one."""

    def __len__(self) -> int:
        """Words."""
        return len(self._starts) - 1

    def _find(self, word: str) -> int | None:
        sought = _encode(word)
        place = bisect_left(range(len(self)), sought, key=self._at)
        return place if place < len(self) and self._at(place) == sought else None

    def _at(self, place: int) -> bytes:
        return self._words[self._starts[place] : self._starts[place + 1]]


def _encode(word: str) -> bytes:
    return word.encode("utf-8", "surrogatepass")
