"""Naming a provider in settings: `searxng=http://localhost:8080`, `serper`, and so on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from icrl.errors import ConfigError, nearest
from icrl.runtime.tools.web.brave import Brave
from icrl.runtime.tools.web.ddgs import Ddgs
from icrl.runtime.tools.web.provider import Provider
from icrl.runtime.tools.web.search import WebSearchTool
from icrl.runtime.tools.web.searxng import SearXNG
from icrl.runtime.tools.web.serper import Serper
from icrl.runtime.tools.web.tavily import Tavily

__all__ = ["PROVIDERS", "find_provider", "open_web"]

PROVIDERS: Mapping[str, Callable[[str | None], Provider]] = MappingProxyType(
    {
        "brave": lambda url: Brave() if url is None else Brave(url=url),
        "ddgs": lambda url: Ddgs() if url is None else Ddgs(backend=url),
        "searxng": SearXNG,
        "serper": lambda url: Serper() if url is None else Serper(url=url),
        "tavily": lambda url: Tavily() if url is None else Tavily(url=url),
    }
)
"""How each provider is made from what stands behind its name: an address, or for `ddgs` the engines."""


def find_provider(spec: str) -> Provider:
    """Make a provider by name; keys come from the environment and are never part of a name.

    Args:
        spec: `NAME` or `NAME=ADDRESS`; for ddgs, `ddgs=ENGINES`.

    Raises:
        ConfigError: There is no such provider, or its address or key is missing.
        MissingExtraError: The provider's library is not installed.

    Example:
        >>> find_provider("searxng=http://localhost:8080")
        <searxng http://localhost:8080>
    """
    name, equals, address = spec.partition("=")
    if name not in PROVIDERS:
        hint = nearest(name, PROVIDERS) or f" The providers are: {', '.join(PROVIDERS)}."
        raise ConfigError(f"web: there is no provider {name!r}.{hint}")
    if equals and not address:
        raise ConfigError(f"web: nothing stands behind {spec!r}; write {name}, or {name}=ADDRESS")
    return PROVIDERS[name](address if equals else None)


def open_web(spec: str, *, k: int = 5) -> WebSearchTool:
    """Make the search tool that a setting names.

    There is no default provider: which one is asked, and paid, is said in words.

    Args:
        spec: `web:PROVIDER`, such as `web:serper` or `web:searxng=http://localhost:8080`.
        k: Hits to show at most.

    Raises:
        ConfigError: The setting names no provider, or the provider misses its address or key.
        MissingExtraError: The provider's library is not installed.

    Example:
        >>> open_web("web:searxng=http://localhost:8080").spec.name
        'web'
    """
    tool, colon, provider = spec.partition(":")
    if tool != "web" or not colon or not provider:
        raise ConfigError(f"tools: {spec!r} names no provider; write for example web:searxng=http://localhost:8080")
    return WebSearchTool(find_provider(provider), k=k)
