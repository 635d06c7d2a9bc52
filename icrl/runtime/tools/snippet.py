"""Programs as models write them down, and what a run printed as models are shown it."""

from __future__ import annotations

import re

from icrl.runtime.sandbox.result import SandboxResult

__all__ = ["shortened", "transcript", "unfenced"]

_OPENING = re.compile(r"\s*```[ \t]*(?:python3?|py)?[ \t\r]*\n", re.IGNORECASE)
_CLOSING = re.compile(r"(?:\A|\n)[ \t]*```\s*\Z")


def unfenced(code: str) -> str:
    r"""Take a Markdown fence off a program; one that begins without a fence stays as it is.

    Args:
        code: What a model wrote as a program.

    Example:
        >>> unfenced("```python\nprint(1)\n```\n")
        'print(1)'
    """
    opening = _OPENING.match(code)
    return code if opening is None else _CLOSING.sub("", code[opening.end() :])


def transcript(result: SandboxResult) -> str:
    r"""Return what a run printed, then its value, then its error, each beginning on a line of its own.

    Example:
        >>> transcript(SandboxResult(status="ok", stdout="3\n", value="4"))
        '3\n4'
    """
    cut = "[more was printed than is kept]" if result.truncated else None
    parts = (result.stdout.removesuffix("\n"), cut, result.value, result.error)
    return "\n".join(part for part in parts if part)


def shortened(text: str, max_chars: int) -> str:
    """Cut a text in the middle, with a notice, so that `max_chars` of it stay.

    Example:
        >>> shortened("123456789", 4).splitlines()
        ['12', '[5 characters left out]', '89']
    """
    if len(text) <= max_chars:
        return text
    tail = max_chars // 2
    notice = f"[{len(text) - max_chars} characters left out]"
    return f"{text[: max_chars - tail]}\n{notice}\n{text[len(text) - tail :]}"
