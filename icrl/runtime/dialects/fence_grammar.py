"""The marks of the fenced dialect, as patterns that also say where a mark may have begun and is not all there yet.

`LIVE` has a pattern for each mode of the parser; what its group `wait` matches is held back until more text arrives.
`FINAL` has the same for the end of a turn, where nothing more arrives. Fences follow CommonMark: three backticks,
indented by three spaces at most, alone on their line but for what stands behind an opening one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["CLOSING_FENCES", "FINAL", "LIVE", "is_program"]

_INDENT = " {0,3}"
_INFO = r"[^\n`]{0,99}"
CLOSING_FENCES = tuple(f"\n{' ' * size}```\n" for size in range(4))
"""A fence and nothing else on a line; an opening fence that names its language is none of them."""

_PROGRAM = re.compile(r"[ \t]*(?:python3?|py)(?![^\s{:,])", re.IGNORECASE)


def is_program(info: str) -> bool:
    """Say whether what stands behind an opening fence names Python.

    Example:
        >>> is_program("Python"), is_program("text"), is_program("")
        (True, False, False)
    """
    return _PROGRAM.match(info) is not None


def _any(*tags: str) -> str:
    return rf"(?P<tag>{'|'.join(map(re.escape, tags))})"


def _begun(*tags: str) -> str:
    """Match what may become one of some tags."""
    return "|".join(re.escape(tag[:size]) for tag in tags for size in range(1, len(tag)))


def _prose(*tags: str) -> tuple[str, str]:
    """Return the marks of text around programs, and what may become one."""
    fence = rf"(?<![^\n]){_INDENT}```(?P<info>{_INFO})(?=\n|END)"
    begun_fence = rf"(?<![^\n]){_INDENT}(?:`{{0,2}}|```{_INFO})"
    return rf"(?P<fence>{fence})|(?P<ticks>`+)(?!`)|{_any(*tags)}", rf"{begun_fence}|`+|{_begun(*tags)}"


_END_BEGUN = rf"\n{_INDENT}(?:`{{0,2}}|```[ \t\r]*)"
_MODES = {
    "text": _prose("<code>", "<think>", "<answer>", r"\boxed{"),
    "thought": _prose("<code>", "</think>"),
    "span": (r"\n|`+(?!`)", "`+"),
    "block": (rf"\n{_INDENT}```[ \t\r]*(?=\n|END)", _END_BEGUN),
    "fenced": (rf"\n{_INDENT}```[ \t\r]*(?:\n|END)", _END_BEGUN),
    "code": (rf"\n{_INDENT}```[ \t\r]*(?:\n|END)|{_any('</code>')}", rf"{_END_BEGUN}|{_begun('</code>')}"),
    "boxed": (r"\\[^\n]|[{}]|\n[ \t]*(?=\n)|\n(?= {0,3}```)", r"\\|\n[ \t]*`{0,2}"),
    "answer": (_any("</answer>"), _begun("</answer>")),
    "rest": (_any("</code>"), _begun("</code>")),
}
"""What the parser looks for in each mode, and what may become that."""

LIVE: Mapping[str, re.Pattern[str]] = {
    mode: re.compile(rf"(?P<wait>(?:{begun})\Z)|{marks.replace('|END', '')}") for mode, (marks, begun) in _MODES.items()
}
FINAL: Mapping[str, re.Pattern[str]] = {
    mode: re.compile(marks.replace("END", r"\Z")) for mode, (marks, _) in _MODES.items()
}
