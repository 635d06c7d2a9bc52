"""Asking a search service over HTTP: one session, one limit each on time and bytes, and typed errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NoReturn, TypeVar

import aiohttp
import msgspec
from yarl import URL

from icrl.errors import ConfigError, ToolError
from icrl.runtime.tools.web.body import UnknownEncoding, read_body
from icrl.runtime.tools.web.errors import Auth, BadQuery, RateLimited, Unavailable
from icrl.runtime.tools.web.retry_after import retry_after_s
from icrl.runtime.tools.web.session import Session

__all__ = ["MAX_ANSWER_BYTES", "Api", "Request", "service_url"]

MAX_ANSWER_BYTES = 2_000_000

_T = TypeVar("_T")

# 202 is how some engines answer those whom they take for robots.
_RATE_LIMITED = frozenset({202, 429})
_BAD_QUERY = frozenset({400, 413, 414, 422})
_AUTH = frozenset({401, 402, 403})


def service_url(url: str, *, setting: str) -> URL:
    """Check the address of a service.

    Raises:
        ConfigError: It is none, or it has a password in it, which logs would show.

    Example:
        >>> service_url("http://localhost:8080", setting="searxng")
        URL('http://localhost:8080')
    """
    try:
        parsed = URL(url)
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{setting}: write the service's address, such as http://localhost:8080")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise ConfigError(f"{setting}: the address must not hold a user name or password")
    return parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a service is sent.

    Example:
        >>> Request(method="GET", url=URL("http://localhost:8080/search"), params={"q": "rikor"}).method
        'GET'
    """

    method: str
    """`GET` or `POST`."""
    url: URL
    """Where to."""
    params: Mapping[str, str] = field(default_factory=dict)
    """The URL's query."""
    json: Mapping[str, Any] | None = None
    """The body."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further headers; the place for a key."""


@dataclass(slots=True)
class Api:
    """Sends requests to one service and reads JSON.

    Neither messages nor tracebacks of its errors show headers, bodies or addresses.

    Example:
        >>> Api("serper", max_connections=8).timeout_s
        10.0
    """

    name: str
    """The service's name, for messages."""
    _: KW_ONLY
    max_connections: int
    """Connections at once; further requests wait."""
    timeout_s: float = 10.0
    """Seconds for one request, so that a deadline leaves time for another."""
    _session: Session = field(init=False, repr=False)

    def __post_init__(self) -> None:
        limit = self.max_connections
        if limit < 1:
            raise ConfigError(f"max_concurrency: must be >= 1, not {limit!r}")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s: must be > 0 seconds, not {self.timeout_s!r}")
        self._session = Session(lambda: aiohttp.TCPConnector(limit=limit, ttl_dns_cache=60))

    async def ask(self, request: Request, kind: type[_T], *, deadline: float) -> _T:
        """Send a request and read the answer as a `kind`.

        Redirects are not followed: they would carry the key elsewhere.

        Raises:
            RateLimited: Status 202 or 429.
            BadQuery: Status 400, 413, 414 or 422.
            Auth: Status 401, 402 or 403.
            Unavailable: Any other status than 200; no connection; no answer within `timeout_s` or by `deadline`; an
                answer that is too long or is no such JSON.
        """
        data = await self._fetch(request, min(self.timeout_s, deadline - time.monotonic()))
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
        raise Unavailable(f"{self.name} answered with something that is not a list of results")

    async def _fetch(self, request: Request, timeout_s: float) -> bytes:
        if timeout_s <= 0:
            raise Unavailable(f"no time was left to ask {self.name}")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._send(request)
        except ToolError:
            raise
        except TimeoutError:
            problem = f"gave no answer within {timeout_s:.3g} s"
        except UnknownEncoding as error:
            problem = f"answered in an unknown form: {error}"
        except (aiohttp.ClientError, OSError, ValueError):
            problem = "cannot be reached"
        # Raised outside of the handler: aiohttp's errors hold the request's headers, and with them the key.
        raise Unavailable(f"{self.name} {problem}")

    async def _send(self, request: Request) -> bytes:
        async with self._session.open().request(
            request.method,
            request.url,
            params=request.params,
            json=request.json,
            headers={"Accept": "application/json", **request.headers},
            allow_redirects=False,
        ) as response:
            if response.status != 200:
                self._refuse(response.status, retry_after_s(response.headers))
            body = await read_body(response, max_bytes=MAX_ANSWER_BYTES)
            if not body.complete:
                raise Unavailable(f"{self.name} answered with more than {MAX_ANSWER_BYTES:,} bytes, or only in part")
            return body.data

    def _refuse(self, status: int, retry_after_s: float | None) -> NoReturn:
        if status in _RATE_LIMITED:
            raise RateLimited(f"{self.name} asks for fewer requests (status {status})", retry_after_s=retry_after_s)
        if status in _BAD_QUERY:
            raise BadQuery(f"{self.name} cannot work with this query (status {status}); write it differently")
        if status in _AUTH:
            raise Auth(f"{self.name} refuses access (status {status}); searching will not work in this session")
        raise Unavailable(f"{self.name} does not work now (status {status})", retry_after_s=retry_after_s)

    async def aclose(self) -> None:
        """Close the connections; a later request makes new ones."""
        await self._session.aclose()
