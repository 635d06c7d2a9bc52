"""What building any index has in common: reading the corpus, and putting the result in its place at once."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icrl.errors import ConfigError, DataError
from icrl.runtime.tools.corpus import Document, read_corpus
from icrl.runtime.tools.index_meta import format_of

__all__ = ["CorpusReader", "reading", "replacing"]

SWAP_ATTEMPTS = 3


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Make a directory that appears at `out` once it is complete; an index that is there already is replaced.

    Yields:
        The directory to write to. It vanishes if the block raises.

    Raises:
        ConfigError: `out` holds something that is not an index.
        DataError: `out` cannot be written.
    """
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and (_is_index(out) or not any(out.iterdir()))):
        raise ConfigError(f"out: {out} exists and is not a search index; choose another directory")
    fresh = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        fresh.mkdir(parents=True)
        yield fresh
        _install(fresh, out)
    except OSError as error:
        raise DataError(f"{out}: the index cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _is_index(directory: Path) -> bool:
    try:
        return format_of(directory).startswith("icrl-")
    except DataError:
        return False


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


@dataclass(slots=True, kw_only=True, eq=False)
class CorpusReader:
    """Reads a corpus once, from its beginning to its end."""

    path: Path
    """The JSONL file."""
    size: int
    """Its bytes."""
    progress: Any
    """A `rich.progress.Progress`."""
    start: int = 0
    """Where in the file the current document's line begins."""
    documents: int = 0
    """Documents read so far."""
    _digest: Any = None

    def __iter__(self) -> Iterator[Document]:
        """Yield documents.

        Raises:
            DataError: A line is broken, or there is no document.
        """
        self._digest = hashlib.sha256()
        task = self.progress.add_task("reading", total=self.size)

        end = 0

        def on_line(line: bytes) -> None:
            nonlocal end
            self._digest.update(line)
            self.start, end = end, end + len(line)
            self.progress.advance(task, len(line))

        for document in read_corpus(self.path, on_line=on_line):
            self.documents += 1
            yield document
        if not self.documents:
            raise DataError(f"{self.path}: holds no documents; there is nothing to search")

    @property
    def sha256(self) -> str:
        """Hash of what has been read, in hexadecimal digits."""
        return str(self._digest.hexdigest())


@contextmanager
def reading(path: Path, *, show_progress: bool) -> Iterator[CorpusReader]:
    """Read a corpus, drawing a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    path = Path(path)
    columns = (TextColumn(f"{path.name}: {{task.description}}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    size = path.stat().st_size if path.is_file() else 0
    with Progress(*columns, console=Console(stderr=True), disable=not show_progress, transient=True) as progress:
        yield CorpusReader(path=path, size=size, progress=progress)
