"""Documents: how a corpus is read from JSON lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from icrl.errors import DataError, nearest

__all__ = ["TOKENIZER", "Document", "Hit", "read_corpus", "split_contents", "words"]

TOKENIZER = "lower-words-1"
"""Names what `words` does; an index is only opened by the tokenizer that built it."""

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Split a text into lower-case words; nothing is left out.

    Example:
        >>> words("The code of Rikor is 113.")
        ['the', 'code', 'of', 'rikor', 'is', '113']
    """
    return _WORD.findall(text.lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    r"""One entry of a corpus.

    Example:
        >>> Document(id="7", title="Rikor", text="The code of Rikor is 113.").searchable
        'Rikor\nThe code of Rikor is 113.'
    """

    id: str
    """The corpus' own name for it, or its position."""
    title: str
    """May be empty."""
    text: str
    """The body."""

    @property
    def searchable(self) -> str:
        """What is indexed: title and text."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A document that was found.

    Example:
        >>> Hit(id="7", title="", text="The code of Rikor is 113.", score=2.5).id
        '7'
    """

    id: str
    """The document's id."""
    title: str
    """Its title; may be empty."""
    text: str
    """Its text."""
    score: float
    """How well it fits; larger is better, comparable within one index only."""


class _Line(msgspec.Struct):
    text: str | None = None
    contents: str | None = None
    title: str | None = None
    id: str | int | None = None


_DECODER = msgspec.json.Decoder(_Line)


def read_corpus(path: Path, *, on_line: Callable[[bytes], object]) -> Iterator[Document]:
    """Read a corpus of JSON lines; blank lines are skipped.

    A line is `{"text": …}`, or `{"contents": …}` whose first line is the title, as Search-R1 writes it; `"title"` and
    `"id"` are optional and other fields are ignored. Documents without an id are named by their position.

    Args:
        path: The file, in UTF-8.
        on_line: Is shown every line as it is in the file.

    Raises:
        DataError: The file cannot be read, or a line is broken; the message names file, line and reason.
    """
    position = 0
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            on_line(line)
            if line.strip():
                yield _parse(line, f"{path}:{number}", str(position))
                position += 1


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: cannot be read ({error.strerror}).{nearest(path.name, siblings)}") from error


def _parse(line: bytes, where: str, position: str) -> Document:
    try:
        raw = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {error}") from error
    if raw.text is None and raw.contents is None:
        keys = ", ".join(map(repr, msgspec.json.decode(line))) or "none"
        raise DataError(f"{where}: has neither 'text' nor 'contents' (its fields: {keys})")
    title, text = (raw.title or "", raw.text) if raw.text is not None else split_contents(raw.contents or "")
    return Document(id=position if raw.id is None else str(raw.id), title=title, text=text)


def split_contents(contents: str) -> tuple[str, str]:
    r"""Split what Search-R1 calls contents into title and text.

    Example:
        >>> split_contents('"Rikor"\nIts code is 113.')
        ('Rikor', 'Its code is 113.')
    """
    title, newline, text = contents.partition("\n")
    return (title.strip().strip('"'), text) if newline else ("", contents)
