"""Serper: Google's results as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import msgspec

from icrl.runtime.tools.web.api import Request, service_url
from icrl.runtime.tools.web.keys import Key
from icrl.runtime.tools.web.service import Row, Service, ServiceLimits

__all__ = ["Serper"]

_URL = "https://google.serper.dev/search"


class _Result(msgspec.Struct):
    link: str | None = None
    title: str | None = None
    snippet: str | None = None


class _Answer(msgspec.Struct):
    organic: list[_Result]


class Serper(Service):
    """Searches through Serper (serper.dev).

    Args:
        key: The key; if not given, `SERPER_API_KEY` of the environment.
        url: Address of the service.
        limits: See `ServiceLimits`.

    Raises:
        ConfigError: There is no key.

    Example:
        >>> Serper("s3cret")
        <serper https://google.serper.dev/search>
    """

    name = "serper"

    def __init__(self, key: str | None = None, *, url: str = _URL, **limits: Unpack[ServiceLimits]) -> None:
        super().__init__(service_url(url, setting=self.name), **limits)
        self._key = Key(key, variable="SERPER_API_KEY")

    async def _rows(self, query: str, k: int, deadline: float) -> Iterable[Row]:
        request = Request(
            method="POST",
            url=self.url,
            json={"q": query, "num": k},
            headers={"X-API-KEY": self._key.reveal()},
        )
        answer = await self._api.ask(request, _Answer, deadline=deadline)
        return ((row.title, row.link, row.snippet) for row in answer.organic)
