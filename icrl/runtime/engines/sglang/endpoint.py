"""Where a server is, and the heads of requests to it."""

from __future__ import annotations

import re
import ssl
from urllib.parse import urlsplit

from icrl.errors import ConfigError

__all__ = ["Endpoint"]

_PRINTABLE = re.compile(r"[!-~]+")
_NUMERIC = re.compile(r"[\d.]+|.*:.*")
_KEY = re.compile(r"[ -~]+")


class Endpoint:
    r"""A server's address, taken apart.

    Args:
        address: `http://host:port` or `https://…`, perhaps with a path that goes before all others.
        api_key: Sent as a bearer token.

    Raises:
        ConfigError: The address is none, or the key cannot be sent.

    Example:
        >>> endpoint = Endpoint("http://[::1]:30000/v1/")
        >>> endpoint.host, endpoint.port, endpoint.address
        ('::1', 30000, 'http://[::1]:30000/v1')
        >>> endpoint.head("GET", "/models", None)
        b'GET /v1/models HTTP/1.1\r\nHost: [::1]:30000\r\nAccept-Encoding: identity\r\n\r\n'
    """

    def __init__(self, address: str, api_key: str | None = None) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"address: {address!r} needs a scheme; write 'http://{address}'")
        if api_key and not _KEY.fullmatch(api_key):
            raise ConfigError("api_key: holds a line break or another character that is not printable ASCII; remove it")
        self.address = address.rstrip("/")
        """The address without a slash at the end."""
        self.host, self.port, self._base = _parts(self.address)
        self.named = not _NUMERIC.fullmatch(self.host)
        """Whether the host is a name, which may stand for several addresses."""
        self.tls = _context() if address.startswith("https:") else None
        """How to encrypt, if at all."""
        self._fields = f"Host: {self._name()}\r\nAccept-Encoding: identity\r\n"
        if api_key:
            self._fields += f"Authorization: Bearer {api_key}\r\n"
        self._heads: dict[tuple[str, str], bytes] = {}

    def head(self, method: str, path: str, length: int | None) -> bytes:
        """Return all of a request that comes before its body.

        Args:
            method: Such as `POST`.
            path: What to ask, as it is sent.
            length: Bytes of the JSON that follows; `None` if there is none.

        Raises:
            ConfigError: The path holds what would end it.
        """
        head = self._heads.get((method, path)) or self._spell(method, path)
        if length is None:
            return head + b"\r\n"
        return b"%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (head, length)

    def _spell(self, method: str, path: str) -> bytes:
        target = self._base + path
        if not _PRINTABLE.fullmatch(target):
            raise ConfigError(f"path: {target!r} holds a blank or another character that must be percent-encoded")
        head = f"{method} {target} HTTP/1.1\r\n{self._fields}".encode("ascii")
        if len(self._heads) < 64:
            self._heads[method, path] = head
        return head

    def _name(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def _parts(address: str) -> tuple[str, int, str]:
    """Return host, port and path; what would be sent to nobody, or means nothing here, is refused."""
    try:
        if not _PRINTABLE.fullmatch(address):
            raise ValueError("a blank, or a character that is not ASCII")
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        if not host or not host.encode("idna"):
            raise ValueError("no host")
        if parts.query or parts.fragment:
            raise ValueError("a query or a fragment")
    except ValueError as error:  # among them those of ports and labels
        raise ConfigError(f"address: {address!r} has {error}; write 'http://host:port'") from error
    if "@" in parts.netloc:
        raise ConfigError(f"address: of {host} holds a user's name or password; pass a key as api_key instead")
    return host, port if port is not None else (443 if parts.scheme == "https" else 80), parts.path


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
