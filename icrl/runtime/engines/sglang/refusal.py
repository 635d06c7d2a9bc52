"""What a server says when it refuses."""

from __future__ import annotations

import msgspec

__all__ = ["retryable", "said"]

LONGEST = 500
"""Characters of a message that are kept."""

KEYS = ("error", "message", "detail", "error_message")
"""Under which of these a message may be."""


def said(body: bytes) -> str:
    """Find the message in a refusal, whichever of the shapes it has.

    SGLang has three: `{"error": {"message": …}}`, `{"error": …}` and `{"object": "error", "message": …}`; its
    framework adds `{"detail": …}`, and what loads adapters `{"error_message": …}`. Anything else is quoted.

    Example:
        >>> said(b'{"error": {"message": "too long"}}'), said(b'{"object": "error", "message": "no"}'), said(b"oops")
        ('too long', 'no', 'oops')
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _cut(body.decode("utf-8", "replace")) or "an empty reply"
    for _ in range(2):
        if isinstance(value, dict):
            value = next((value[key] for key in KEYS if value.get(key)), value)
    return _cut(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def retryable(status: int) -> bool:
    """Whether the same request may succeed later: it came too late or too soon, or it was the server's own fault.

    Example:
        >>> [status for status in (400, 404, 408, 429, 500) if retryable(status)]
        [408, 429, 500]
    """
    return status in (408, 429) or status >= 500


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
