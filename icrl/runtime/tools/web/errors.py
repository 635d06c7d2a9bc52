"""What can go wrong with a search provider or a page, as a model may read it."""

from __future__ import annotations

from icrl.errors import ToolArgumentError, ToolError, ToolUnavailable

__all__ = ["Auth", "BadQuery", "RateLimited", "Unavailable"]


class RateLimited(ToolUnavailable):
    """The other side asks for fewer requests.

    Example:
        >>> RateLimited("serper asks for fewer requests", retry_after_s=2.0).retry_after_s
        2.0
    """


class Unavailable(ToolUnavailable):
    """The other side does not answer, or not with something that can be understood."""


class BadQuery(ToolArgumentError):
    """The other side cannot work with this query."""


class Auth(ToolError):
    """The other side refuses the key, or the account has nothing left; trying again does not help."""
