"""Running a program in a locked child, and putting what came of it into words for the model."""

from __future__ import annotations

import traceback
from typing import Any

from icrl.runtime.sandbox.language import Language, Refused

__all__ = ["OUT_OF_MEMORY", "UNTOLD", "describe", "perform"]

_SNIPPET = "<snippet>"
_MAX_VALUE = 20_000
_MAX_ERROR = 8_000
_MAX_FRAMES = 12

Outcome = dict[str, Any]
"""`status`, `value`, `error` and `truncated`, as in a `SandboxResult`."""


def _outcome(status: str, *, value: str | None = None, error: str | None = None, truncated: bool = False) -> Outcome:
    return {"status": status, "value": value, "error": error, "truncated": truncated}


OUT_OF_MEMORY: Outcome = _outcome("memory", error="MemoryError: the program needs more memory than it may have")
"""What is said when no memory is left to say more."""
UNTOLD: Outcome = _outcome("error", error="the program failed, and its failure cannot be described")
"""What is said when describing a failure failed."""


def perform(language: Language, namespace: dict[str, Any], code: str, *, first: bool) -> Outcome:
    """Run a program and say how it ended.

    Args:
        language: What runs it.
        namespace: Its globals.
        code: Its source.
        first: Whether nothing ran in the namespace before, so that every frame of a traceback is of this source.

    Raises:
        MemoryError: Nothing can be described for want of memory.
    """
    try:
        value = language.execute(code, namespace)
        return _outcome("ok") if value is None else _shown(repr(value))
    except Refused as refusal:
        return _outcome("denied", error=_clean(str(refusal), _MAX_ERROR))
    except MemoryError:
        raise
    except SystemExit as end:
        if end.code in (None, 0):
            return _outcome("ok")
        return _outcome("error", error=describe(end, code, first=first))
    except BaseException as error:
        return _outcome("error", error=describe(error, code, first=first))


def _shown(text: str) -> Outcome:
    return _outcome("ok", value=_clean(text, _MAX_VALUE), truncated=len(text) > _MAX_VALUE)


def _clean(text: str, most: int) -> str:
    """Cut the middle out, and replace what cannot be written as UTF-8."""
    if len(text) > most:
        kept = most // 2
        text = f"{text[:kept]} ... [{len(text) - 2 * kept} characters left out] ... {text[-kept:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def describe(error: BaseException, code: str, *, first: bool = True) -> str:
    r"""Return the traceback of an exception with the frames of the snippet only.

    Args:
        error: What the program raised.
        code: Its source, for the lines.
        first: Whether all frames are of this source; else only those of its outermost level are shown with lines.

    Example:
        >>> try:
        ...     exec(compile("x = 1\nx / 0", "<snippet>", "exec"))
        ... except ZeroDivisionError as error:
        ...     print(describe(error, "x = 1\nx / 0"))
        Traceback (most recent call last):
          File "<snippet>", line 2, in <module>
            x / 0
        ZeroDivisionError: division by zero
    """
    lines = code.splitlines()
    walked = traceback.walk_tb(error.__traceback__)
    frames = [(frame.f_code.co_name, line) for frame, line in walked if frame.f_code.co_filename == _SNIPPET]
    told = [_frame(name, line, lines if first or name == "<module>" else []) for name, line in frames]
    if len(told) > _MAX_FRAMES:
        half = _MAX_FRAMES // 2
        told[half:-half] = [f"  [{len(told) - 2 * half} more frames]\n"]
    head = ["Traceback (most recent call last):\n"] if told else []
    return _clean("".join([*head, *told, *traceback.format_exception_only(error)]).rstrip("\n"), _MAX_ERROR)


def _frame(name: str, line: int, lines: list[str]) -> str:
    source = f"    {lines[line - 1].strip()}\n" if 0 < line <= len(lines) else ""
    return f'  File "{_SNIPPET}", line {line}, in {name}\n{source}'
