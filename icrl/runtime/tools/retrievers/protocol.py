"""What a retriever and an index are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from icrl.errors import ConfigError
from icrl.runtime.tools.corpus import Hit

__all__ = ["Index", "Retriever", "check_k", "fingerprint_of"]


class Retriever(Protocol):
    """Finds documents.

    It may have `async def aclose(self) -> None` like a tool, and `fingerprint: str`, which names whatever decides what
    it finds, such as a hash of the corpus; without one its answers are not cached.
    """

    async def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find at most `k` documents for each query, best first."""
        ...


class Index(Protocol):
    """Documents that can be searched in this process."""

    @property
    def fingerprint(self) -> str:
        """Names whatever decides what a search finds."""
        ...

    def __len__(self) -> int:
        """Documents."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find at most `k` documents for each query, best first; blocks for as long as it computes."""
        ...


def check_k(k: int) -> None:
    """Refuse to find nothing.

    Raises:
        ConfigError: `k` is less than 1.
    """
    if k < 1:
        raise ConfigError(f"k: must be >= 1, not {k!r}")


def fingerprint_of(retriever: Retriever) -> str | None:
    """Return a retriever's fingerprint, if it has one.

    Example:
        >>> from types import SimpleNamespace
        >>> fingerprint_of(SimpleNamespace(fingerprint="7f3a"))
        '7f3a'
    """
    return getattr(retriever, "fingerprint", None)
