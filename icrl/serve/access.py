"""Who may call: API keys, origins of other pages, and a rate for each caller."""

from __future__ import annotations

import hashlib
import hmac
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
            return request.remote or "unknown"
        return hashlib.sha256((given or "").encode("utf-8", "surrogatepass")).hexdigest()[:12]
