"""ddgs: results scraped from search engines' pages, without a key and without a promise."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from icrl.errors import ConfigError
from icrl.imports import require
from icrl.runtime.tools.threads import Threads
from icrl.runtime.tools.web.errors import Unavailable
from icrl.runtime.tools.web.provider import WebHit, rank_hits

__all__ = ["Ddgs"]


class Ddgs:
    """Searches with the `ddgs` library, in threads of its own; for demonstrations, not for training.

    It scrapes pages: it breaks without notice, engines block it soon, and their terms may forbid it. It cannot tell a
    refusal from a query that nothing fits, so both are `Unavailable`, and an empty answer is never given.

    A thread cannot be killed: a search that missed its deadline goes on for up to `timeout_s` and keeps its slot.

    Args:
        backend: Engines that the library asks, separated by commas; `auto` for its own choice.
        max_concurrency: Searches at once.
        calls_per_s: Searches a second.
        timeout_s: Whole seconds for one search.

    Raises:
        ConfigError: A limit is not positive.
        MissingExtraError: The library is not installed.

    Example:
        >>> Ddgs().fingerprint
        'ddgs auto'
    """

    name = "ddgs"
    cost_per_call = 0.0

    def __init__(
        self, *, backend: str = "auto", max_concurrency: int = 2, calls_per_s: float | None = 1.0, timeout_s: int = 10
    ) -> None:
        require("ddgs", extra="web")
        if max_concurrency < 1 or timeout_s < 1:
            raise ConfigError(f"max_concurrency and timeout_s: must be >= 1, not {max_concurrency!r} and {timeout_s!r}")
        self.max_concurrency = max_concurrency
        self.calls_per_s = calls_per_s
        self._backend = backend
        self._timeout_s = timeout_s
        self._threads = Threads(name="ddgs", limit=max_concurrency)

    @property
    def fingerprint(self) -> str:
        """Name and engines."""
        return f"{self.name} {self._backend}"

    @property
    def busy(self) -> int:
        """Threads that search now, for callers that have given up included."""
        return self._threads.busy

    def __repr__(self) -> str:
        return f"<{self.fingerprint}>"

    async def search(self, query: str, k: int, *, deadline: float) -> list[WebHit]:
        """Find at most `k` pages; see `Provider.search`. Raises nothing but `Unavailable`."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise Unavailable("no time was left to ask ddgs")
        find = partial(_find, query, k, backend=self._backend, timeout_s=self._timeout_s)
        try:
            async with asyncio.timeout(left_s):
                rows = await self._threads.run(find)
        except TimeoutError:
            raise Unavailable(f"ddgs gave no answer within {left_s:.3g} s") from None
        hits = rank_hits(((row.get("title"), row.get("href"), row.get("body")) for row in rows), source=self.name, k=k)
        if not hits:
            raise Unavailable("ddgs found nothing, or was refused; it cannot tell which")
        return hits

    async def aclose(self) -> None:
        """Let idle threads end."""
        await self._threads.aclose()


def _find(query: str, k: int, *, backend: str, timeout_s: int) -> list[dict[str, Any]]:
    from ddgs import DDGS

    try:
        rows: list[dict[str, Any]] = DDGS(timeout=timeout_s).text(query, max_results=k, backend=backend)
    except Exception:
        # Not from its cause, whose text is an engine's: HTML, addresses, whatever it sent.
        raise Unavailable("ddgs found nothing, or was refused; it cannot tell which") from None
    return rows
