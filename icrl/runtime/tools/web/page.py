"""Reading one page of the web as text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import aiohttp
from aiohttp.abc import AbstractResolver

from icrl.errors import ConfigError, ToolError, ToolTimeout
from icrl.runtime.tools.web.address import AddressGate, IPAddress, is_public
from icrl.runtime.tools.web.body import UnknownEncoding, read_body
from icrl.runtime.tools.web.charset import decode_text
from icrl.runtime.tools.web.client import PageClient, shown_host
from icrl.runtime.tools.web.errors import RateLimited, Unavailable
from icrl.runtime.tools.web.hosts import HostLimits, Hosts
from icrl.runtime.tools.web.readable import ReadableText, Reader
from icrl.runtime.tools.web.retry_after import retry_after_s
from icrl.runtime.tools.web.robots import Robots
from icrl.runtime.tools.web.sanitise import one_line
from icrl.runtime.tools.web.url import UrlPolicy

__all__ = ["HTML_TYPES", "TEXT_TYPES", "FetchSettings", "Page", "PageFetcher"]

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
TEXT_TYPES = frozenset(
    {"text/plain", "text/markdown", "text/csv", "text/xml", "application/xml", "application/json"}
    | {"application/ld+json", "application/rss+xml", "application/atom+xml"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """What a fetcher may do.

    Example:
        >>> FetchSettings(urls=UrlPolicy(allow_domains=["wikipedia.org"])).max_bytes
        2000000
    """

    urls: UrlPolicy = field(default_factory=UrlPolicy)
    """Domains and ports."""
    hosts: HostLimits = field(default_factory=HostLimits)
    """How gently one host is treated."""
    obey_robots: bool = True
    """Whether robots.txt is asked and obeyed."""
    max_bytes: int = 2_000_000
    """Decompressed bytes to read of a page; what follows is left out, with a notice."""
    timeout_s: float = 20.0
    """Seconds for one page, robots.txt, redirects and waiting included."""
    extract_timeout_s: float = 5.0
    """Seconds for finding the text in the HTML."""
    processes: int = 2
    """Pages whose text is looked for at once."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes: must be >= 1, not {self.max_bytes!r}")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s: must be > 0 seconds, not {self.timeout_s!r}")

    @property
    def fingerprint(self) -> str:
        """Whatever of this decides what a page says; equal settings give equal ones in every process."""
        robots = "obeyed" if self.obey_robots else "ignored"
        return f"max_bytes={self.max_bytes} robots={robots} {self.urls.fingerprint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a page says. Its texts are foreign and as they came: `sanitise` them before a model reads them.

    Example:
        >>> Page(url="https://rikor.example/", title="", text="Its code is 113.", notices=()).text
        'Its code is 113.'
    """

    url: str
    """Where it was in the end, after redirects."""
    title: str
    """May be empty."""
    text: str
    """The main text of HTML; anything else as it is."""
    notices: tuple[str, ...]
    """What the reader should know about how the text was made; ours, not the page's."""


class PageFetcher:
    """Reads pages of the public web: over http and https, without cookies, credentials or a proxy.

    Args:
        settings: What it may do.
        allow_address: For tests. Which addresses may be dialled; any other than `is_public` gives whoever writes
            URLs access to this machine's network. No setting or environment variable reaches it.
        resolver: For tests. Looks names up.

    Raises:
        MissingExtraError: trafilatura is not installed.

    Example:
        >>> async def read() -> Page:
        ...     fetcher = PageFetcher()
        ...     try:
        ...         return await fetcher.fetch("http://169.254.169.254/meta-data", deadline=time.monotonic() + 9)
        ...     finally:
        ...         await fetcher.aclose()
        >>> asyncio.run(read())
        Traceback (most recent call last):
        icrl.runtime.tools.web.url.PageRefused: 169.254.169.254 is not on the public internet
    """

    def __init__(
        self,
        settings: FetchSettings | None = None,
        *,
        allow_address: Callable[[IPAddress], bool] = is_public,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.settings = settings or FetchSettings()
        gate = AddressGate(ports=self.settings.urls.ports, allow_address=allow_address)
        self._client = PageClient(self.settings.urls, gate, Hosts(self.settings.hosts), resolver=resolver)
        self._robots = Robots(self._client)
        self._reader = Reader(processes=self.settings.processes, timeout_s=self.settings.extract_timeout_s)

    async def fetch(self, url: str, *, deadline: float) -> Page:
        """Read a page.

        Args:
            url: Its address.
            deadline: Monotonic time by which it is needed; `timeout_s` of the settings may be earlier.

        Raises:
            ToolArgumentError: The address cannot be understood.
            PageRefused: The address, one that it redirects to, or what it stands for may not be asked.
            RateLimited: The host asks for fewer requests, or we already ask it often enough.
            Unavailable: The host cannot be reached, breaks off, or answers with a status 5xx.
            ToolTimeout: The time was over.
            ToolError: There is no such page, or it is not text.
        """
        start = self.settings.urls.check(url)
        deadline = min(deadline, time.monotonic() + self.settings.timeout_s)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise ToolTimeout(f"no time was left to ask {shown_host(start)}")
        before = partial(self._robots.check, deadline=deadline) if self.settings.obey_robots else None
        try:
            async with asyncio.timeout(left_s):
                async with self._client.open(start, deadline=deadline, before=before) as response:
                    _check_status(response)
                    content_type = _check_type(response)
                    body = await read_body(response, max_bytes=self.settings.max_bytes)
                is_html = content_type in HTML_TYPES
                text = decode_text(body.data, charset=response.charset, is_html=is_html)
                made = await self._reader.read(text, deadline=deadline) if is_html else _as_it_is(text)
        except UnknownEncoding as error:
            raise ToolError(f"the page cannot be read: {error}") from None
        except TimeoutError:
            raise ToolTimeout(f"{shown_host(start)} gave no answer within {left_s:.3g} s") from None
        cut = "" if body.complete else f"(Only the first {len(body.data):,} bytes of the page were read.)"
        notices = tuple(filter(None, (made.notice, cut)))
        return Page(url=str(response.url), title=made.title, text=made.text, notices=notices)

    async def aclose(self) -> None:
        """Close connections and end processes; the next page opens them again."""
        self._robots.clear()
        await self._client.aclose()
        await self._reader.aclose()


def _as_it_is(text: str) -> ReadableText:
    return ReadableText(title="", text=text, notice="")


def _check_status(response: aiohttp.ClientResponse) -> None:
    status, host = response.status, shown_host(response.url)
    if status in (200, 203):
        return
    if status == 429:
        raise RateLimited(f"{host} asks for fewer requests", retry_after_s=retry_after_s(response.headers))
    if status >= 500:
        raise Unavailable(f"{host} does not work now (status {status})", retry_after_s=retry_after_s(response.headers))
    if status in (404, 410):
        raise ToolError(f"{host} has no such page (status {status})")
    raise ToolError(f"{host} does not give this page (status {status})")


def _check_type(response: aiohttp.ClientResponse) -> str:
    content_type = response.content_type.lower()
    if content_type not in HTML_TYPES | TEXT_TYPES:
        shown = one_line(content_type, max_chars=100)
        raise ToolError(f"the page is not text that can be read here, but {shown}")
    return content_type
