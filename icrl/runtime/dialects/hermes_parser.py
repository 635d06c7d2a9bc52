"""Reading `<think>` blocks and `<tool_call>` objects while they are being sampled.

A tag inside a JSON string is part of the string; JSON strings end with their line, so one whose closing quote is
missing cannot swallow the rest of the turn. Tags inside a thought are part of the thought.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from icrl.runtime.dialects.protocol import Piece, PieceKind

__all__ = ["CallBlock", "HermesParser"]

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAGS = {"text": ("<think>", _OPEN), "thought": ("</think>",), "call": (_OPEN, _CLOSE), "string": ()}
_NEXT = {
    "text": re.compile("<think>|<tool_call>"),
    "thought": re.compile("</think>"),
    "call": re.compile('"|</?tool_call>'),
    "string": re.compile(r'\\.|["\n]', re.DOTALL),
}
_BEGINNINGS = {
    state: frozenset(tag[:size] for tag in tags for size in range(1, len(tag))) for state, tags in _TAGS.items()
}


@dataclass(frozen=True, slots=True)
class CallBlock:
    """A `<tool_call>` of a turn."""

    body: str
    """What stands between the tags."""
    start: int
    """Character of the turn at which its opening tag begins."""
    end: int
    """One past its last character."""
    closed: bool
    """Whether it has a closing tag."""


class HermesParser:
    """Labels the text of one turn as it arrives.

    Args:
        thinking: Whether the chat template has already opened a thought.

    Example:
        >>> parser = HermesParser()
        >>> parser.feed("Let me see. <tool_ca")
        [Piece(kind='text', text='Let me see. ', block=0, name='')]
        >>> parser.feed('ll>{"name": "x"}</tool_call>')
        [Piece(kind='call', text='{"name": "x"}', block=1, name='')]
        >>> parser.calls[0].body
        '{"name": "x"}'
    """

    def __init__(self, thinking: bool = False) -> None:
        self.calls: list[CallBlock] = []
        """The calls so far."""
        self.spoken: list[str] = []
        """The text outside thoughts and calls."""
        self.thoughts: list[str] = []
        """The text of thoughts."""
        self._state = "thought" if thinking else "text"
        self._pieces: list[Piece] = []
        self._body: list[str] = []
        self._buffer = ""
        self._offset = 0
        self._block = 0
        self._start = 0

    def feed(self, text: str) -> list[Piece]:
        """Take more text and return the pieces that are certain now."""
        buffer, said, position = self._buffer + text, 0, 0
        while match := _NEXT[self._state].search(buffer, position):
            position = match.end()
            if self._state == "string" or match[0] == '"':
                self._quote(match[0])
                continue
            self._say(buffer[said : match.start()])
            self._tag(match[0], self._offset + match.start())
            said = position
        end = self._certain(buffer, position)
        self._say(buffer[said:end])
        self._buffer = buffer[end:]
        self._offset += end
        return self._taken()

    def close(self) -> list[Piece]:
        """Return the pieces that were held back; the turn is over."""
        self._say(self._buffer)
        self._offset += len(self._buffer)
        self._buffer = ""
        if self._state in ("call", "string"):
            self._finish(self._offset, closed=False)
        return self._taken()

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _certain(self, buffer: str, position: int) -> int:
        """Return the end of what cannot be the beginning of a tag or an escape."""
        if self._state == "string":
            return len(buffer) - buffer.endswith("\\", position)
        at = buffer.rfind("<", max(position, len(buffer) - len(_CLOSE)))
        return at if at >= 0 and buffer[at:] in _BEGINNINGS[self._state] else len(buffer)

    def _say(self, text: str) -> None:
        if not text:
            return
        kind: PieceKind = "text" if self._state == "text" else "thought" if self._state == "thought" else "call"
        {"text": self.spoken, "thought": self.thoughts, "call": self._body}[kind].append(text)
        self._pieces.append(Piece(kind, text, self._block))

    def _quote(self, token: str) -> None:
        if len(token) == 1:  # not an escape
            self._state = "call" if self._state == "string" else "string"

    def _tag(self, tag: str, at: int) -> None:
        if self._state == "call":
            self._finish(at + len(tag) if tag == _CLOSE else at, closed=tag == _CLOSE)
        self._block += 1
        self._state = {"<think>": "thought", _OPEN: "call"}.get(tag, "text")
        self._start = at

    def _finish(self, end: int, *, closed: bool) -> None:
        self.calls.append(CallBlock("".join(self._body), self._start, end, closed))
        self._body.clear()
