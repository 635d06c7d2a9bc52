"""Tavily: search made for models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import msgspec

from icrl.runtime.tools.web.api import Request, service_url
from icrl.runtime.tools.web.keys import Key
from icrl.runtime.tools.web.service import Row, Service, ServiceLimits

__all__ = ["Tavily"]

_URL = "https://api.tavily.com/search"


class _Result(msgspec.Struct):
    url: str | None = None
    title: str | None = None
    content: str | None = None


class _Answer(msgspec.Struct):
    results: list[_Result]


class Tavily(Service):
    """Searches through Tavily (tavily.com).

    Args:
        key: The key; if not given, `TAVILY_API_KEY` of the environment.
        url: Address of the service.
        limits: See `ServiceLimits`.

    Raises:
        ConfigError: There is no key.

    Example:
        >>> Tavily("s3cret")
        <tavily https://api.tavily.com/search>
    """

    name = "tavily"

    def __init__(self, key: str | None = None, *, url: str = _URL, **limits: Unpack[ServiceLimits]) -> None:
        super().__init__(service_url(url, setting=self.name), **limits)
        self._key = Key(key, variable="TAVILY_API_KEY")

    async def _rows(self, query: str, k: int, deadline: float) -> Iterable[Row]:
        request = Request(
            method="POST",
            url=self.url,
            json={"query": query, "max_results": k},
            headers={"Authorization": f"Bearer {self._key.reveal()}"},
        )
        answer = await self._api.ask(request, _Answer, deadline=deadline)
        return ((row.title, row.url, row.content) for row in answer.results)
