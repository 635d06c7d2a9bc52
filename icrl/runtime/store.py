"""Trajectories on disk: one JSON line each, appended as they are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from icrl.errors import DataError
from icrl.trajectory import Trajectory
from icrl.wire import decode, encode

__all__ = ["TrajectoryStore", "read_trajectories"]


class TrajectoryStore:
    """An append-only file of trajectories.

    Args:
        path: The file; created if it does not exist.
        keep_bytes: Cut the file to this length first, which is how a resumed run forgets what it will do again.

    Raises:
        DataError: The file cannot be written, or is shorter than what shall be kept.
    """

    def __init__(self, path: Path, *, keep_bytes: int | None = None) -> None:
        self._path = path
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise self._unwritable(error) from error
        self._size_bytes = self._file.tell()
        if keep_bytes is not None:
            self._cut(keep_bytes)

    def _cut(self, keep_bytes: int) -> None:
        try:
            if keep_bytes > self._size_bytes:
                raise DataError(f"{self._path}: has {self._size_bytes} bytes, of which {keep_bytes} shall be kept")
            if keep_bytes < self._size_bytes:
                self._size_bytes = self._file.truncate(keep_bytes)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            if self._size_bytes != keep_bytes:
                self._file.close()

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self._path}: cannot be written ({error.strerror})")

    def append(self, trajectories: Iterable[Trajectory]) -> None:
        """Write trajectories and flush them.

        Raises:
            DataError: The disk is full or the file went away.
        """
        lines = b"".join(encode(t) + b"\n" for t in trajectories)
        try:
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        self._size_bytes += len(lines)

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return self._size_bytes

    def close(self) -> None:
        """Close the file.

        Raises:
            DataError: What an earlier `append` could not write is still not written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """Iterate over a file of trajectories.

    Raises:
        DataError: There is no such file, or a line is damaged; the message names it.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    with file as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield decode(line, Trajectory)
            except DataError as error:
                raise DataError(f"{path}:{number}: {error}") from error
