"""When a server says that trying again makes sense."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

__all__ = ["MAX_RETRY_AFTER_S", "retry_after_s"]

MAX_RETRY_AFTER_S = 3600.0

_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read `Retry-After` (RFC 9110 §10.2.3), as seconds or as a date.

    Returns:
        Seconds from now, between 0 and `MAX_RETRY_AFTER_S`; `None` where nothing, or nothing sensible, is said.

    Example:
        >>> retry_after_s({"Retry-After": "7"})
        7.0
    """
    text = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError, OSError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
