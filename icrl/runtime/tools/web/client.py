"""Asking for pages: redirects followed hop by hop, each judged anew, and everything dialled through the gate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from icrl.errors import ToolError
from icrl.runtime.tools.web.address import AddressGate, AddressRefused
from icrl.runtime.tools.web.body import UnknownEncoding
from icrl.runtime.tools.web.errors import Unavailable
from icrl.runtime.tools.web.hosts import Hosts
from icrl.runtime.tools.web.resolver import ThreadResolver
from icrl.runtime.tools.web.sanitise import one_line
from icrl.runtime.tools.web.session import Session
from icrl.runtime.tools.web.url import MAX_URL_CHARS, PageRefused, UrlPolicy

__all__ = ["MAX_REDIRECTS", "PageClient", "shown_host"]

MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class PageClient:
    """Sends GET requests to where a model, or a page, wants to go.

    Args:
        policy: Judges addresses by their text, redirects' included.
        gate: Makes the sockets.
        hosts: Limits per host.
        resolver: Looks names up; the system's resolver in threads of its own if not given.

    Example:
        >>> import asyncio
        >>> from icrl.runtime.tools.web.hosts import HostLimits
        >>> async def look() -> None:
        ...     client = PageClient(UrlPolicy(), AddressGate(ports={80}), Hosts(HostLimits()))
        ...     async with client.open(URL("http://127.0.0.1/"), deadline=0.0):
        ...         pass
        >>> asyncio.run(look())
        Traceback (most recent call last):
        icrl.runtime.tools.web.url.PageRefused: 127.0.0.1 is not on the public internet
    """

    def __init__(
        self,
        policy: UrlPolicy,
        gate: AddressGate,
        hosts: Hosts,
        *,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._policy = policy
        self._gate = gate
        self._hosts = hosts
        self._resolver = found = resolver or ThreadResolver()
        # No cache of names: what is dialled is judged each time, and connections are kept for a while anyway.
        self._session = Session(
            lambda: aiohttp.TCPConnector(limit=0, use_dns_cache=False, resolver=found, socket_factory=gate)
        )

    @asynccontextmanager
    async def open(
        self, url: URL, *, deadline: float, before: Callable[[URL], Awaitable[None]] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask for a page and hold the answer, which is no redirect any more; its body is not read yet.

        Args:
            url: Where to begin.
            deadline: Monotonic time until which to wait for a turn at a host. Nothing else is bounded here.
            before: Is shown every address before it is asked, and may raise.

        Raises:
            PageRefused: An address on the way is not allowed.
            ToolError: There are too many redirects, or one that leads nowhere.
            Unavailable: A host cannot be reached, or breaks off.
        """
        for _ in range(MAX_REDIRECTS + 1):
            self._judge(url)
            if before is not None:
                await before(url)
            with _translate(shown_host(url)):
                async with self._hosts.visit(url.raw_host or "", deadline=deadline), self._get(url) as response:
                    target = _target(response)
                    if target is None:
                        yield response
                        return
            url = target
        raise ToolError(f"more than {MAX_REDIRECTS} redirects lead on from there")

    async def aclose(self) -> None:
        """Close the connections; the next request makes new ones."""
        await self._session.aclose()
        await self._resolver.close()

    def _judge(self, url: URL) -> None:
        self._policy.judge(url)
        host = url.raw_host or ""
        try:
            ip_address(host)
        except ValueError:
            return
        if not self._gate.allows(host, url.port or 0):
            raise PageRefused(f"{shown_host(url)} is not on the public internet")

    @asynccontextmanager
    async def _get(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": "text/html,application/xhtml+xml,text/plain,application/json;q=0.9,*/*;q=0.1"}
        async with self._session.open().get(url, headers=headers, allow_redirects=False) as response:
            yield response


def shown_host(url: URL) -> str:
    """Return an address' host as it may be shown: a redirect names it, so it is foreign."""
    return one_line(url.raw_host or "", max_chars=100)


def _target(response: aiohttp.ClientResponse) -> URL | None:
    """Where a redirect leads; `None` where the answer is none."""
    location = response.headers.get("Location", "").strip()
    if response.status not in _REDIRECTS or not location:
        return None
    try:
        if len(location) > MAX_URL_CHARS or "\\" in location:
            raise ValueError(location)
        target = response.url.join(URL(location)).with_fragment(None)
        _ = target.port
    except (ValueError, UnicodeError):
        raise ToolError("it redirects to an address that cannot be understood") from None
    return target


@contextmanager
def _translate(host: str) -> Iterator[None]:
    """Turn what aiohttp raises into what a model may read; nothing in it tells what a name resolves to."""
    try:
        yield
    except aiohttp.ServerTimeoutError:
        raise Unavailable(f"{host} cannot be reached") from None
    except (ToolError, TimeoutError, UnknownEncoding):
        raise
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, AddressRefused):
            raise PageRefused(f"{host} is not on the public internet") from None
        raise Unavailable(f"{host} cannot be reached") from None
    except (aiohttp.InvalidURL, UnicodeError):
        raise ToolError(f"{host} is no name of a host") from None
    except (aiohttp.ClientError, OSError):
        raise Unavailable(f"{host} broke off, or sent something that is no answer") from None
