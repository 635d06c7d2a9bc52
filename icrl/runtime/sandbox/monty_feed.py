"""One program in Monty: what is sent, what comes back, and what is said of its end.

Objects of a program never become objects of this process: a value is written down inside, and cut there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from icrl.errors import SandboxError
from icrl.runtime.sandbox.excerpt import MAX_ERROR, excerpt
from icrl.runtime.sandbox.result import SandboxResult

__all__ = ["MAX_OUTPUT_BYTES", "Printed", "feed"]

MAX_OUTPUT_BYTES: Final = 200_000
"""Bytes that are kept of what a program printed."""
_MAX_VALUE: Final = 20_000
_MAX_FRAMES: Final = 12
_LAST_STATEMENT = re.compile(r"^[^\s#)\]}]", re.MULTILINE)
_ENDED: Final = "\nNone"


@dataclass(slots=True, eq=False)
class Printed:
    """What a program printed so far; called by a thread of the library for each piece.

    Example:
        >>> printed = Printed(on_overflow=lambda: None)
        >>> printed("stdout", "3")
        >>> printed.text
        '3'
    """

    on_overflow: Callable[[], object]
    """Called by that thread, once, when more comes than is kept."""
    _pieces: list[str] = field(default_factory=list)
    """The output in order."""
    _room: int = MAX_OUTPUT_BYTES
    """Bytes that may still come."""

    def __call__(self, stream: str, text: str) -> None:
        """Keep what there is room for; an exception from here would reach the program's end only."""
        if self._room < 0:
            return
        data = text.encode("utf-8", "replace")
        self._pieces.append(data[: self._room].decode("utf-8", "ignore"))
        self._room -= len(data)
        if self._room < 0:
            self.on_overflow()

    @property
    def text(self) -> str:
        """What is kept of it."""
        return "".join(self._pieces)

    @property
    def overflowed(self) -> bool:
        """Whether more was printed than is kept."""
        return self._room < 0

    def clear(self) -> None:
        """Forget the output of a program that is run again."""
        self._pieces.clear()
        self._room = MAX_OUTPUT_BYTES


class _Value:
    """Takes the written value of a last bare expression, under a name that the program does not know."""

    def __init__(self) -> None:
        self.name = f"_{secrets.token_hex(16)}"
        # Inside of brackets, or after half a statement, `pass` is an error: what follows it is a whole statement.
        self.opening = f"pass;{self.name}('%.{_MAX_VALUE + 1}r'%(("
        self.text: str | None = None

    def __call__(self, text: str) -> None:
        self.text = text

    def wrapped(self, code: str) -> str | None:
        """Return the program with its last top-level line handed over, to be tried; `None` without such a line."""
        starts = [found.start() for found in _LAST_STATEMENT.finditer(code)]
        if not starts:
            return None
        return f"{code[: starts[-1]]}{self.opening}{code[starts[-1] :]}\n),))"


async def feed(session: Any, code: str, printed: Printed) -> SandboxResult:
    r"""Run a program in a session of Monty, and say how it ended.

    A program whose last line is no expression is not one any more when that line is handed over. This is found before
    anything of it runs, and then it runs as it is.

    Args:
        session: An `AsyncMontySession`.
        code: Its source.
        printed: Gets what it prints.

    Raises:
        SandboxError: The library failed.
    """
    import pydantic_monty

    value = _Value()
    wrapped = value.wrapped(code)
    try:
        if wrapped is not None:
            try:
                await _complete(session, wrapped, printed, value)
                return _returned(value.text, printed)
            except pydantic_monty.MontySyntaxError as error:
                if not _is_of_the_parser(error):
                    raise
                printed.clear()
        await _complete(session, code + _ENDED, printed, None)
    except pydantic_monty.MontyCrashedError as error:
        return SandboxResult(status="crashed", stdout=printed.text, error=excerpt(str(error), MAX_ERROR))
    except (pydantic_monty.MontyRuntimeError, pydantic_monty.MontySyntaxError) as error:
        return _failed(error, printed, value.opening)
    except (pydantic_monty.MontyError, RuntimeError) as error:
        raise SandboxError(f"Monty failed: {error}") from error
    return SandboxResult(status="ok", stdout=printed.text)


async def _complete(session: Any, code: str, printed: Printed, value: _Value | None) -> None:
    """Run to the end without looking at what is returned: converting a large object would hold up this process."""
    import pydantic_monty

    known: dict[str, Callable[[str], None]] = {} if value is None else {value.name: value}
    state = await session.feed_start(code, print_callback=printed, external_lookup=known)
    while not isinstance(state, pydantic_monty.MontyComplete):
        state = await state.resume_auto()


def _is_of_the_parser(error: Any) -> bool:
    frames = error.traceback()
    return len(frames) <= 1 and all(frame.function_name is None for frame in frames)


def _returned(value: str | None, printed: Printed) -> SandboxResult:
    if value is None or value == "None":
        return SandboxResult(status="ok", stdout=printed.text)
    cut = len(value) > _MAX_VALUE
    return SandboxResult(status="ok", stdout=printed.text, value=value[:_MAX_VALUE], truncated=cut)


def _failed(error: Any, printed: Printed, opening: str) -> SandboxResult:
    memory = isinstance(error.exception(), MemoryError)
    told = excerpt(_described(error, opening), MAX_ERROR)
    return SandboxResult(status="memory" if memory else "error", stdout=printed.text, error=told)


def _described(error: Any, opening: str) -> str:
    frames = [_frame(frame, opening) for frame in error.traceback()]
    if len(frames) > _MAX_FRAMES:
        half = _MAX_FRAMES // 2
        frames[half:-half] = [f"  [{len(frames) - 2 * half} more frames]\n"]
    head = ["Traceback (most recent call last):\n"] if frames else []
    return "".join([*head, *frames, error.display("type-msg")])


def _frame(frame: Any, opening: str) -> str:
    source = excerpt((frame.source_line or "").removeprefix(opening).strip(), 200)
    place = f'  File "<snippet>", line {frame.line}'
    named = f"{place}, in {frame.function_name}" if frame.function_name else place
    return f"{named}\n    {source}\n" if source else f"{named}\n"
