"""Who may call: API keys, and who a caller is."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from aiohttp import web

from icrl.serve.problem import Problem

__all__ = ["OPEN_PATHS", "Keys"]

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""What can be read without a key: nothing that a model wrote."""


class Keys:
    """The accepted API keys.

    Keys are compared in constant time by their digests, and only a digest is kept.

    Args:
        keys: The keys; without any, everybody may call.

    Example:
        >>> Keys(["secret"]).accepts("secret"), Keys(["secret"]).accepts("guess"), Keys([]).accepts(None)
        (True, False, True)
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def asked_for(self) -> bool:
        """Whether callers need a key."""
        return bool(self._digests)

    def accepts(self, key: str | None) -> bool:
        """Say whether a key is one of them."""
        if not self._digests:
            return True
        digest = hashlib.sha256((key or "").encode("utf-8", "surrogatepass")).digest()
        # Every digest is compared, so that the time does not tell which one it was.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def caller(self, request: web.Request) -> str:
        """Name whoever calls, for bounds and logs: a few digits of the key's digest, or the address.

        Raises:
            Problem: 401, the key is missing or wrong.
        """
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else None
        if not self.accepts(given):
            raise Problem(
                401,
                "the API key is missing or wrong; send `Authorization: Bearer KEY`",
                type="authentication_error",
                code="invalid_api_key",
            )
        if not self._digests:
            return _place(request.remote or "")
        return hashlib.sha256((given or "").encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _place(remote: str) -> str:
    """Name where a request comes from; who has an IPv6 address has all of its /64, and is one caller.

    Example:
        >>> _place("2001:db8::5"), _place("::ffff:192.0.2.7"), _place("127.0.0.1")
        ('2001:db8::/64', '192.0.2.7', '127.0.0.1')
    """
    try:
        address = ipaddress.ip_address(remote.partition("%")[0])
    except ValueError:
        return remote or "unknown"
    if isinstance(address, ipaddress.IPv6Address) and not address.is_loopback:
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.ip_network(f"{address}/64", strict=False))
    return str(address)
