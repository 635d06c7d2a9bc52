"""Search providers: what they find and how they are asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["MAX_HITS", "Provider", "WebHit", "rank_hits"]

MAX_HITS = 20
"""Hits that one search can ask for: what every provider can give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebHit:
    """A page that a provider names. Its texts are foreign and as they came: `sanitise` them before a model reads them.

    Example:
        >>> WebHit(title="Rikor", url="https://rikor.example/", snippet="Its code: 113", rank=1, source="serper").rank
        1
    """

    title: str
    """May be empty."""
    url: str
    """Where it is; begins with `http://` or `https://`."""
    snippet: str
    """What the provider quotes of it; may be empty."""
    rank: int
    """Place among the hits, from 1."""
    source: str
    """Name of the provider."""


@runtime_checkable
class Provider(Protocol):
    """Searches the web. It asks once: retries and the circuit breaker belong to the tool and its toolbox."""

    @property
    def name(self) -> str:
        """Short name, such as `serper`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Whatever besides query and `k` decides its answers: its name and address, never a key."""
        ...

    @property
    def max_concurrency(self) -> int:
        """Searches that it may run at once."""
        ...

    @property
    def calls_per_s(self) -> float | None:
        """Searches a second that its contract allows; `None` for no bound."""
        ...

    @property
    def cost_per_call(self) -> float:
        """US dollars for one search; 0 where it is free or not known."""
        ...

    async def search(self, query: str, k: int, *, deadline: float) -> list[WebHit]:
        """Find at most `k` pages, best first.

        Args:
            query: Words to look for.
            k: Hits wanted, at most `MAX_HITS`.
            deadline: Monotonic time by which the answer is needed.

        Raises:
            RateLimited: It asks for fewer requests.
            Unavailable: It gives no answer in time, or none that can be understood.
            BadQuery: It cannot work with this query.
            Auth: It refuses the key.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections and threads; a later search opens them again."""
        ...


def rank_hits(rows: Iterable[tuple[str | None, str | None, str | None]], *, source: str, k: int) -> list[WebHit]:
    """Make hits of titles, addresses and snippets; what is no web address, or stood before, is left out.

    Example:
        >>> rows = [("A", "https://a.example/", None), ("B", "javascript:alert(1)", None)]
        >>> [hit.url for hit in rank_hits(rows, source="serper", k=3)]
        ['https://a.example/']
    """
    found: dict[str, WebHit] = {}
    for title, url, snippet in rows:
        if len(found) == k:
            break
        if url and url.startswith(("http://", "https://")) and url not in found:
            found[url] = WebHit(title=title or "", url=url, snippet=snippet or "", rank=len(found) + 1, source=source)
    return list(found.values())
