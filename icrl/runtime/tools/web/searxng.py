"""SearXNG: a metasearch engine that one can run oneself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Unpack

import msgspec

from icrl.runtime.tools.web.api import Request, service_url
from icrl.runtime.tools.web.errors import Unavailable
from icrl.runtime.tools.web.service import Row, Service, ServiceLimits

__all__ = ["SearXNG"]


class _Result(msgspec.Struct):
    url: str | None = None
    title: str | None = None
    content: str | None = None


class _Answer(msgspec.Struct):
    results: list[_Result]
    unresponsive_engines: list[object] = []


class SearXNG(Service):
    """Searches through a SearXNG server, whose settings have to list `json` under `search.formats`.

    Args:
        url: Address of the server; if not given, `SEARXNG_URL` of the environment. It is ours, so it may be private.
        limits: See `ServiceLimits`.

    Raises:
        ConfigError: There is no address, or it is not one.

    Example:
        >>> SearXNG("http://localhost:8080").fingerprint
        'searxng http://localhost:8080'
    """

    name = "searxng"

    def __init__(self, url: str | None = None, **limits: Unpack[ServiceLimits]) -> None:
        given = os.environ.get("SEARXNG_URL", "") if url is None else url
        super().__init__(service_url(given, setting="SEARXNG_URL" if url is None else self.name), **limits)

    async def _rows(self, query: str, k: int, deadline: float) -> Iterable[Row]:
        request = Request(method="GET", url=self.url / "search", params={"q": query, "format": "json"})
        answer = await self._api.ask(request, _Answer, deadline=deadline)
        if answer.unresponsive_engines and not answer.results:
            # Nothing found because nobody answered must not be cached as "there is nothing".
            raise Unavailable("searxng found nothing, and some of its engines did not answer")
        return ((row.title, row.url, row.content) for row in answer.results)
