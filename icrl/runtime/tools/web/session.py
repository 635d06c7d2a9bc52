"""An HTTP client session that opens when it is needed and can be closed and opened again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from icrl.runtime.tools.web.body import ACCEPTED_ENCODINGS

__all__ = ["USER_AGENT", "Session"]

USER_AGENT = "icrl"
"""Name under which robots.txt may speak to us."""

_CONNECT_TIMEOUT_S = 10.0


class Session:
    """One `aiohttp.ClientSession` for the event loop that runs now.

    It knows no proxy, no cookie and no credentials from the environment, and it does not decompress: `read_body` does.

    Args:
        connector: Makes the connector; called on the event loop.

    Example:
        >>> async def is_open_again() -> bool:
        ...     session = Session(aiohttp.TCPConnector)
        ...     session.open()
        ...     await session.aclose()
        ...     again = not session.open().closed
        ...     await session.aclose()
        ...     return again
        >>> asyncio.run(is_open_again())
        True
    """

    def __init__(self, connector: Callable[[], aiohttp.TCPConnector]) -> None:
        self._connector = connector
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> aiohttp.ClientSession:
        """Return the session, opened now if need be."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._loop = loop
            self._session = aiohttp.ClientSession(
                connector=self._connector(),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": ACCEPTED_ENCODINGS},
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S),
                auto_decompress=False,
                trust_env=False,
                requote_redirect_url=False,
            )
        return self._session

    async def aclose(self) -> None:
        """Close the connections; the next `open` makes new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
