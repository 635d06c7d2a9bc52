"""What makes two calls equal, and what is kept under that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["CallKey", "Kept", "canonical"]

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class CallKey(NamedTuple):
    """Everything that decides the answer of a repeatable tool."""

    tool: str
    """The tool's name."""
    fingerprint: str
    """What decides its answers besides the arguments, such as a corpus' hash."""
    arguments: str
    """The arguments, canonical."""


class Kept(NamedTuple):
    """An answer in a cache."""

    key: CallKey
    """The call."""
    text: str
    """The answer."""
    stored_at: float
    """When it was given: seconds since the epoch."""


def canonical(arguments: Mapping[str, Any]) -> str | None:
    r"""Write arguments as JSON with sorted keys and no spaces, in ASCII; `None` where they are not JSON.

    Different arguments are written differently: `1`, `1.0`, `true` and `"1"` are four, and NaN is not null.

    Example:
        >>> canonical({"b": 1, "a": "é"})
        '{"a":"\\u00e9","b":1}'
    """
    try:
        return _ENCODER.encode(arguments)
    except (TypeError, ValueError, RecursionError):
        return None
