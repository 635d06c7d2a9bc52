"""Reading fenced programs, `<code>`, `<think>` and answers while they are being sampled.

The rules: the first program that is closed, or the first closed `<answer>`, decides what the turn is, and all that
follows is text. Programs count inside of `<think>`, answers do not. Between inline backticks and in blocks of other
languages there are no marks. Inside a program there is only its end: the first line that holds just a fence closes a
fenced one, in whatever string that line stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from icrl.runtime.dialects.fence_grammar import FINAL, LIVE, is_program
from icrl.runtime.dialects.protocol import Piece, PieceKind

__all__ = ["FenceParser", "Program"]

_KINDS: Mapping[str, PieceKind] = {
    "fenced": "call",
    "code": "call",
    "boxed": "answer",
    "answer": "answer",
    "rest": "text",
}


@dataclass(frozen=True, slots=True)
class Program:
    """A program of a turn."""

    mark: str
    """What opened it: a fence with its indentation, or `<code>`."""
    body: str
    """What stands between its marks."""
    start: int
    """Character of the turn at which its opening mark begins."""
    end: int
    """One past its last character."""
    closed: bool
    """Whether it has an end."""
    in_thought: bool
    """Whether it stands inside of `<think>`."""


class FenceParser:
    r"""Labels the text of one turn as it arrives.

    Args:
        tool: Name of the tool that runs programs; without one, programs are text.

    Example:
        >>> parser = FenceParser("python")
        >>> parser.feed("Let me see.\n```pyth")
        [Piece(kind='text', text='Let me see.\n', block=0, name='')]
        >>> parser.feed("on\nprint(1)\n``")
        [Piece(kind='call', text='\nprint(1)', block=1, name='python')]
        >>> parser.feed("`\n")
        []
        >>> parser.program.body
        '\nprint(1)'
    """

    def __init__(self, tool: str | None) -> None:
        self.program: Program | None = None
        """The first program, once it is closed or the turn is over."""
        self.answer: str | None = None
        """The body of `<answer>`, once it is closed."""
        self.boxed: str | None = None
        """The body of the last `\\boxed{}`."""
        self.open_code = False
        """Whether a fence closed the program inside of a `<code>` that is still open."""
        self.thoughts: list[str] = []
        """The text inside of `<think>`."""
        self.prose: list[str] = []
        """The text outside of everything, up to what decides the turn."""
        self.rest: list[str] = []
        """The text after that."""
        self._tool = tool
        self._mode = self._around = "text"
        self._pieces: list[Piece] = []
        self._body: list[str] = []
        self._buffer = "\n"  # the character before what is still to be read, as it tells whether a line begins
        self._offset = -1
        self._block = 0
        self._start = 0
        self._opening = ""
        self._lead = ""  # the first characters of a body, by which a fence inside of <code> is known
        self._ticks = ""
        self._depth = 0

    def feed(self, text: str) -> list[Piece]:
        """Take more text and return the pieces that are certain now."""
        self._buffer += text
        return self._read(LIVE)

    def close(self) -> list[Piece]:
        """Return the pieces that were held back; the turn is over."""
        pieces = self._read(FINAL)
        if self._mode in ("fenced", "code"):
            self._finish(self._offset + 1, closed=False)
        return pieces

    def _read(self, patterns: Mapping[str, re.Pattern[str]]) -> list[Piece]:
        position = 1
        while match := patterns[self._mode].search(self._buffer, position):
            self._say(self._buffer[position : match.start()])
            position = match.start()
            if match.lastgroup == "wait":
                break
            self._take(match)
            position = match.end()
        else:
            self._say(self._buffer[position:])
            position = len(self._buffer)
        self._buffer = self._buffer[position - 1 :]
        self._offset += position - 1
        pieces, self._pieces = self._pieces, []
        return pieces

    def _say(self, text: str) -> None:
        if not text:
            return
        kind = _KINDS.get(self._mode) or ("thought" if self._around == "thought" else "text")
        spoken = self.rest if self._mode == "rest" else self.prose
        {"call": self._body, "answer": self._body, "thought": self.thoughts, "text": spoken}[kind].append(text)
        if kind == "call" and len(self._lead) < 3:
            self._lead = (self._lead + text).lstrip()[:3]
        self._pieces.append(Piece(kind, text, self._block, (self._tool or "") if kind == "call" else ""))

    def _take(self, match: re.Match[str]) -> None:
        """Do what a mark means where it stands."""
        match self._mode:
            case "span" if match[0] in ("\n", self._ticks):
                self._say(match[0])
                self._mode = self._around
            case "block":
                self._say(match[0])
                self._mode = self._around
            case "fenced" | "code":
                self._in_program(match)
            case "boxed":
                self._in_box(match[0])
            case "answer":
                self.answer = "".join(self._body)
                self._enter("rest")
            case "rest" if self.open_code and self.program is not None:
                self.program = replace(self.program, end=self._offset + match.end())
                self.open_code = False
                self._block += 1
            case "text" | "thought":
                self._in_prose(match)
            case _:
                self._say(match[0])

    def _enter(self, mode: str) -> None:
        self._mode = mode
        self._block += 1
        if mode in ("text", "thought", "rest"):
            self._around = mode

    def _in_prose(self, match: re.Match[str]) -> None:
        mark = match[0]
        if match.lastgroup == "ticks":
            self._say(mark)
            self._mode, self._ticks = "span", mark
        elif match.lastgroup == "fence" and not (self._tool and is_program(match["info"])):
            self._say(mark)
            self._mode = "block"
        elif mark == "<code>" and self._tool is None:
            self._say(mark)
        elif mark in ("<think>", "</think>"):
            self._enter("thought" if mark == "<think>" else "text")
        else:
            self._begin(match)

    def _begin(self, match: re.Match[str]) -> None:
        mark = match[0]
        self._opening, self._lead, self._depth = mark, "", 1
        self._start = self._offset + match.end() - len(mark.lstrip(" "))
        self._body.clear()
        self._enter({"<code>": "code", "<answer>": "answer", "\\boxed{": "boxed"}.get(mark, "fenced"))

    def _in_program(self, match: re.Match[str]) -> None:
        fence = match.lastgroup != "tag"
        if fence and self._mode == "code" and self._lead != "```":
            self._say(match[0])
            return
        self.open_code = fence and self._mode == "code"
        self._finish(self._offset + match.start() + len(match[0].rstrip()), closed=True)

    def _finish(self, end: int, *, closed: bool) -> None:
        self.program = Program(self._opening, "".join(self._body), self._start, end, closed, self._around == "thought")
        self._enter("rest")

    def _in_box(self, mark: str) -> None:
        self._depth += {"{": 1, "}": -1}.get(mark, 0)
        if self._depth == 0:
            self.boxed = "".join(self._body)
            self._enter("text")
            return
        if mark.startswith("\n"):  # a box ends with its paragraph, as it does for TeX
            self._enter("text")
        self._say(mark)
