"""Cutting what a program wrote down to what is kept of it."""

from __future__ import annotations

__all__ = ["MAX_ERROR", "excerpt"]

MAX_ERROR = 8_000
"""Characters that are kept of a failure."""


def excerpt(text: str, most: int) -> str:
    """Cut the middle out of a text that is too long, and replace what cannot be written as UTF-8.

    Args:
        text: Anything a program wrote.
        most: Characters to keep, half of them from each end.

    Example:
        >>> excerpt("0123456789", 4)
        '01 ... [6 characters left out] ... 89'
    """
    if len(text) > most:
        kept = most // 2
        text = f"{text[:kept]} ... [{len(text) - 2 * kept} characters left out] ... {text[-kept:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
