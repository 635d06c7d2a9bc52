"""What the search services behind an HTTP address have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, TypedDict

from yarl import URL

from icrl.errors import ConfigError
from icrl.runtime.tools.web.api import Api
from icrl.runtime.tools.web.provider import WebHit, rank_hits

__all__ = ["Row", "Service", "ServiceLimits"]

Row = tuple[str | None, str | None, str | None]
"""Title, address and snippet as the service names them."""


class ServiceLimits(TypedDict, total=False):
    """Keyword arguments of every service; all may be left out."""

    max_concurrency: int
    """Searches at once (8)."""
    calls_per_s: float | None
    """Searches a second that the contract allows; `None` for no bound (`None`)."""
    cost_per_call: float
    """US dollars for one search by the contract (0)."""
    timeout_s: float
    """Seconds for one search, so that the deadline leaves time for another try (10)."""


class Service(ABC):
    """A provider behind one HTTP address; a subclass says how to ask it.

    Args:
        url: Where it is.
        max_concurrency: Searches at once.
        calls_per_s: Searches a second; `None` for no bound.
        cost_per_call: US dollars for one search.
        timeout_s: Seconds for one search.
    """

    name: ClassVar[str]

    def __init__(
        self,
        url: URL,
        *,
        max_concurrency: int = 8,
        calls_per_s: float | None = None,
        cost_per_call: float = 0.0,
        timeout_s: float = 10.0,
    ) -> None:
        if cost_per_call < 0:
            raise ConfigError(f"cost_per_call: must be >= 0 dollars, not {cost_per_call!r}")
        self.url = url
        self.max_concurrency = max_concurrency
        self.calls_per_s = calls_per_s
        self.cost_per_call = cost_per_call
        self._api = Api(self.name, max_connections=max_concurrency, timeout_s=timeout_s)

    @property
    def fingerprint(self) -> str:
        """Name and address."""
        return f"{self.name} {self.url}"

    def __repr__(self) -> str:
        return f"<{self.fingerprint}>"

    async def search(self, query: str, k: int, *, deadline: float) -> list[WebHit]:
        """Find at most `k` pages; see `Provider.search`."""
        return rank_hits(await self._rows(query, k, deadline), source=self.name, k=k)

    async def aclose(self) -> None:
        """Close the connections; a later search makes new ones."""
        await self._api.aclose()

    @abstractmethod
    async def _rows(self, query: str, k: int, deadline: float) -> Iterable[Row]:
        """Ask the service; best first."""
