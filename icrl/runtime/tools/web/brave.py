"""Brave Search: an index of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import msgspec

from icrl.runtime.tools.web.api import Request, service_url
from icrl.runtime.tools.web.keys import Key
from icrl.runtime.tools.web.service import Row, Service, ServiceLimits

__all__ = ["Brave"]

_URL = "https://api.search.brave.com/res/v1/web/search"


class _Result(msgspec.Struct):
    url: str | None = None
    title: str | None = None
    description: str | None = None


class _Web(msgspec.Struct):
    results: list[_Result] = []


class _Answer(msgspec.Struct):
    type: str
    web: _Web | None = None


class Brave(Service):
    """Searches through the Brave Search API.

    Args:
        key: The key; if not given, `BRAVE_API_KEY` of the environment.
        url: Address of the service.
        limits: See `ServiceLimits`.

    Raises:
        ConfigError: There is no key.

    Example:
        >>> Brave("s3cret")
        <brave https://api.search.brave.com/res/v1/web/search>
    """

    name = "brave"

    def __init__(self, key: str | None = None, *, url: str = _URL, **limits: Unpack[ServiceLimits]) -> None:
        super().__init__(service_url(url, setting=self.name), **limits)
        self._key = Key(key, variable="BRAVE_API_KEY")

    async def _rows(self, query: str, k: int, deadline: float) -> Iterable[Row]:
        request = Request(
            method="GET",
            url=self.url,
            # Decorations are tags around the words found.
            params={"q": query, "count": str(k), "text_decorations": "false"},
            headers={"X-Subscription-Token": self._key.reveal()},
        )
        answer = await self._api.ask(request, _Answer, deadline=deadline)
        results = answer.web.results if answer.web else []
        return ((row.title, row.url, row.description) for row in results)
