"""The standard streams as programs see them: text in and text out, nothing to detach or reopen."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Self

__all__ = ["Console", "Reader"]


class Console:
    """`sys.stdout` or `sys.stderr`: writes to whatever that is at the time.

    Args:
        name: `"stdout"` or `"stderr"`.
    """

    __slots__ = ("_name",)

    encoding = "utf-8"

    def __init__(self, name: str) -> None:
        self._name = name

    def write(self, text: str) -> int:
        """Write text."""
        return int(getattr(sys, self._name).write(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines, which carry their own ends."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Push what was written on its way."""
        getattr(sys, self._name).flush()

    def isatty(self) -> bool:
        """Return that nobody is watching."""
        return False


class Reader:
    """`sys.stdin`, or its `buffer`: reads from whatever that is at the time.

    Args:
        binary: Read bytes.
    """

    __slots__ = ("_binary",)

    def __init__(self, *, binary: bool = False) -> None:
        self._binary = binary

    @property
    def buffer(self) -> Reader:
        """The same input as bytes."""
        return Reader(binary=True)

    def _cast(self, text: str) -> Any:
        return text.encode() if self._binary else text

    def read(self, size: int = -1) -> Any:
        """Read characters, all that are left by default."""
        return self._cast(sys.stdin.read(size))

    def readline(self) -> Any:
        """Read one line, empty at the end."""
        return self._cast(sys.stdin.readline())

    def readlines(self) -> list[Any]:
        """Read all lines that are left."""
        return list(self)

    def __iter__(self) -> Iterator[Any]:
        return (self._cast(line) for line in sys.stdin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the stream open: it is not the program's."""
