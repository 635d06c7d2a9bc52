"""Addresses that a model writes, or a redirect names: which of them are looked at at all."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address

from yarl import URL

from icrl.errors import ConfigError, ToolArgumentError, ToolError

__all__ = ["MAX_URL_CHARS", "PageRefused", "UrlPolicy"]

MAX_URL_CHARS = 2048

_UNFIT = re.compile(r"[\s\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
# What a lenient parser takes for a number, and so for an IPv4 address: 2130706433, 0x7f.1, 017700000001, 127.1
_NUMBER = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")


class PageRefused(ToolError):
    """A page may not be read, whoever asks and however often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlPolicy:
    """Which addresses may be asked for, by their text; the socket's gate decides on what is dialled.

    Example:
        >>> policy = UrlPolicy(deny_domains=["rikor.example"])
        >>> policy.check("https://www.rikor.example/map")
        Traceback (most recent call last):
        icrl.runtime.tools.web.url.PageRefused: www.rikor.example may not be read here
    """

    ports: Collection[int] = (80, 443)
    """Ports that may be asked."""
    allow_domains: Collection[str] | None = None
    """If given, only these domains and what is below them."""
    deny_domains: Collection[str] = ()
    """Never these, nor what is below them; goes before `allow_domains`."""

    def __post_init__(self) -> None:
        for domain in (*(self.allow_domains or ()), *self.deny_domains):
            if not _DOMAIN.fullmatch(domain):
                raise ConfigError(f"domains: {domain!r} must be a lower-case name such as 'example.org', in ASCII")

    @property
    def fingerprint(self) -> str:
        """The settings as text, in an order of its own."""
        allowed = "all" if self.allow_domains is None else ",".join(sorted(self.allow_domains))
        ports = ",".join(map(str, sorted(self.ports)))
        return f"ports={ports} allow={allowed} deny={','.join(sorted(self.deny_domains))}"

    def check(self, text: str) -> URL:
        """Read and judge an address; its fragment is dropped.

        Raises:
            ToolArgumentError: It is not a whole http or https address.
            PageRefused: Its form, port or domain is not allowed.
        """
        text = text.strip()
        if len(text) > MAX_URL_CHARS:
            raise ToolArgumentError(f"the address is longer than {MAX_URL_CHARS} characters")
        scheme = _SCHEME.match(text)
        if scheme is None or not text[scheme.end() :].startswith("//"):
            raise ToolArgumentError("write the whole address, beginning with https://")
        return self.judge(_parse(text))

    def judge(self, url: URL) -> URL:
        """Judge a parsed address, such as a redirect's.

        Raises:
            ToolArgumentError: It has no host, or one that cannot be.
            PageRefused: Its form, port or domain is not allowed.
        """
        if url.scheme not in ("http", "https"):
            raise PageRefused("only http and https addresses may be read")
        if "@" in url.raw_authority:
            raise PageRefused("an address with a user name or password may not be read")
        host = (url.raw_host or "").lower()
        if not host:
            raise ToolArgumentError("the address names no host")
        if url.port not in self.ports:
            raise PageRefused(f"port {url.port} may not be asked; the ports are {_listed(self.ports)}")
        self._judge_host(host)
        return url.with_fragment(None)

    def _judge_host(self, host: str) -> None:
        name = host.removesuffix(".")
        if not _is_ip(host) and _NUMBER.fullmatch(host):
            raise PageRefused("a host written as a number may not be read; write its name")
        if not _is_ip(host) and not _DOMAIN.fullmatch(name):
            raise ToolArgumentError("the address names no host that can be")
        if _is_within(name, self.deny_domains) or not (
            self.allow_domains is None or _is_within(name, self.allow_domains)
        ):
            raise PageRefused(f"{host} may not be read here")


def _parse(text: str) -> URL:
    if _UNFIT.search(text):
        raise ToolArgumentError("the address has spaces or characters that belong into no address")
    try:
        url = URL(text)
        # Ports are read late, and bad ones refused late.
        _ = url.port
    except (ValueError, UnicodeError):
        raise ToolArgumentError("the address cannot be understood") from None
    return url


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_within(name: str, domains: Collection[str]) -> bool:
    return any(name == domain or name.endswith(f".{domain}") for domain in domains)


def _listed(ports: Collection[int]) -> str:
    return " and ".join(map(str, sorted(ports)))
