"""robots.txt: what a host asks robots to leave alone."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, urlparse
from urllib.robotparser import RobotFileParser

from yarl import URL

from icrl.runtime.tools.web.body import UnknownEncoding, read_body
from icrl.runtime.tools.web.client import PageClient, shown_host
from icrl.runtime.tools.web.errors import Unavailable
from icrl.runtime.tools.web.session import USER_AGENT
from icrl.runtime.tools.web.url import PageRefused

__all__ = ["MAX_ROBOTS_BYTES", "Robots", "parse_robots"]

MAX_ROBOTS_BYTES = 512_000
"""RFC 9309 §2.5 asks for at least 500 KiB."""
MAX_RULES = 2000
MAX_ORIGINS = 1024
TTL_S = 3600.0
FAILURE_TTL_S = 60.0

_LINE = re.compile(r"\s*(user-agent|allow|disallow)\s*:\s*([^#]*)", re.IGNORECASE)


@dataclass(slots=True)
class _Origin:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    rules: RobotFileParser | None = None
    """`None` where the host could not say."""
    good_until: float = 0.0


class Robots:
    r"""Asks each origin once an hour, and remembers what it said.

    Without a robots.txt (status 4xx) everything is allowed; while it cannot be read (5xx, 429) nothing is, as RFC 9309
    §2.3.1 has it, and it is asked again after a minute.

    Args:
        client: Fetches robots.txt, by the same rules as pages.

    Example:
        >>> parse_robots("User-agent: *\nDisallow: /private").can_fetch("icrl", "https://rikor.example/private/map")
        False
    """

    def __init__(self, client: PageClient) -> None:
        self._client = client
        self._origins: OrderedDict[str, _Origin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._origins)

    async def check(self, url: URL, *, deadline: float) -> None:
        """Check that a page may be read.

        Raises:
            PageRefused: The host asks robots not to.
            Unavailable: The host cannot say now.
        """
        origin = self._find(str(url.origin()))
        async with origin.lock:
            if time.monotonic() >= origin.good_until:
                origin.rules = await self._load(url.origin(), deadline)
                origin.good_until = time.monotonic() + (FAILURE_TTL_S if origin.rules is None else TTL_S)
        if origin.rules is None:
            raise Unavailable(f"{shown_host(url)} does not say now what may be read (robots.txt)")
        if not _allows(origin.rules, url):
            raise PageRefused(f"{shown_host(url)} asks robots not to read this page (robots.txt)")

    def clear(self) -> None:
        """Forget everything."""
        self._origins.clear()

    def _find(self, name: str) -> _Origin:
        origin = self._origins.setdefault(name, _Origin())
        self._origins.move_to_end(name)
        if len(self._origins) > MAX_ORIGINS:
            self._origins.popitem(last=False)
        return origin

    async def _load(self, origin: URL, deadline: float) -> RobotFileParser | None:
        async with self._client.open(origin / "robots.txt", deadline=deadline) as response:
            if 400 <= response.status < 500 and response.status != 429:
                return parse_robots("")
            if response.status != 200:
                return None
            try:
                body = await read_body(response, max_bytes=MAX_ROBOTS_BYTES)
            except UnknownEncoding:
                return None
        return parse_robots(body.data.decode("utf-8", "replace"))


def parse_robots(text: str) -> RobotFileParser:
    r"""Read the rules of a robots.txt, at most `MAX_RULES` lines of them; what is broken is left out.

    Example:
        >>> parse_robots("Crawl-delay: \u00b2").can_fetch("icrl", "https://rikor.example/")
        True
    """
    parser = RobotFileParser()
    parser.parse(list(_rules(text)))
    return parser


def _rules(text: str) -> Iterator[str]:
    """Yield the lines that the parser needs: it fails on some others, and takes blank ones for the end of a group."""
    count = 0
    for line in text.splitlines():
        found = _LINE.match(line[:2000])
        if found is None or count == MAX_RULES:
            continue
        name, value = found[1].lower(), found[2].strip()
        if name != "user-agent" and value.endswith("*"):
            # The parser knows prefixes only, which is what a star at the end means.
            value = value.rstrip("*") or "/"
        if name == "user-agent" or not value or _is_path(value):
            count += 1
            yield f"{name}: {value}"


def _is_path(value: str) -> bool:
    try:
        urlparse(unquote(value))
    except ValueError:
        return False
    return value.startswith("/")


def _allows(rules: RobotFileParser, url: URL) -> bool:
    try:
        return rules.can_fetch(USER_AGENT, str(url))
    except ValueError:
        return False
