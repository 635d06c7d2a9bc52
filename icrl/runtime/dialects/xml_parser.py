"""Reading `<think>`, tool and `<answer>` tags while they are being sampled.

The rule: a closing tag belongs to the nearest opening tag of the same name, and whatever was opened in between and
not closed is plain text of it. The first closing tag of a tool or of `answer` decides what the turn is, because
generation stops there. So a call may be made inside a thought that was never closed, and a call's body may mention
`<answer>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from icrl.errors import ConfigError
from icrl.runtime.dialects.protocol import Piece, PieceKind

__all__ = ["RESERVED", "Block", "Grammar", "XmlParser", "grammar"]

RESERVED = ("think", "answer", "information")
"""The dialect's own tags; the rest are tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """The tags of one set of tools."""

    tools: frozenset[str]
    """Names of the tools."""
    kinds: Mapping[str, tuple[PieceKind, str]]
    """What the text inside a tag is, and the tool it names; `""` is outside of all."""
    tag: re.Pattern[str]
    """Matches every tag; group 1 is the slash, group 2 the name."""
    beginnings: frozenset[str]
    """All proper beginnings of tags, to be held back until the rest arrives."""
    longest: int
    """Characters of the longest tag."""


@lru_cache(maxsize=128)
def grammar(tools: tuple[str, ...]) -> Grammar:
    """Return the grammar of tools with these names.

    Raises:
        ConfigError: A tool has the name of one of the dialect's own tags.
    """
    for name in tools:
        if name in RESERVED:
            raise ConfigError(f"tools: {name!r} is a tag of the xml dialect; give the tool another name")
    names = ("think", "answer", *tools)
    tags = [f"<{slash}{name}>" for name in names for slash in ("", "/")]
    own: dict[str, tuple[PieceKind, str]] = {"": ("text", ""), "think": ("thought", ""), "answer": ("answer", "")}
    return Grammar(
        tools=frozenset(tools),
        kinds=own | {name: ("call", name) for name in tools},
        tag=re.compile("<(/?)(" + "|".join(map(re.escape, names)) + ")>"),
        beginnings=frozenset(tag[:size] for tag in tags for size in range(1, len(tag))),
        longest=max(map(len, tags)),
    )


@dataclass(frozen=True, slots=True)
class Block:
    """A call of a turn."""

    name: str
    """The tag."""
    body: str
    """What stands between the tags."""
    start: int
    """Character of the turn at which its opening tag begins."""
    end: int
    """One past its last character."""
    error: str | None = None
    """Why it is no call."""


@dataclass(slots=True)
class _Open:
    """A tag that was opened and is not closed yet."""

    name: str
    start: int
    body: str = ""


class XmlParser:
    """Labels the text of one turn as it arrives.

    Example:
        >>> parser = XmlParser(grammar(("search",)))
        >>> parser.feed("<think> hm </think><sea")
        [Piece(kind='thought', text=' hm ', block=1, name='')]
        >>> parser.feed("rch> x </search>")
        [Piece(kind='call', text=' x ', block=3, name='search')]
        >>> parser.call.body
        ' x '
    """

    def __init__(self, tags: Grammar) -> None:
        self.call: Block | None = None
        """The turn's call, once there is one."""
        self.answer: str | None = None
        """The body of the last answer."""
        self.thoughts: list[str] = []
        """The bodies of thoughts; the last one may be unclosed."""
        self._tags = tags
        self._open: list[_Open] = []
        self._pieces: list[Piece] = []
        self._buffer = ""
        self._offset = 0
        self._block = 0

    def feed(self, text: str) -> list[Piece]:
        """Take more text and return the pieces that are certain now."""
        buffer, position = self._buffer + text, 0
        for match in self._tags.tag.finditer(buffer):
            self._text(buffer[position : match.start()])
            self._tag(match, self._offset + match.start())
            position = match.end()
        end = self._certain(buffer, position)
        self._text(buffer[position:end])
        self._buffer = buffer[end:]
        self._offset += end
        return self._taken()

    def close(self) -> list[Piece]:
        """Return the pieces that were held back; the turn is over."""
        self._text(self._buffer)
        if self._open:
            self._abandon(self._offset + len(self._buffer))
        self._buffer = ""
        return self._taken()

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _certain(self, buffer: str, position: int) -> int:
        """Return the end of what cannot be the beginning of a tag."""
        at = buffer.rfind("<", max(position, len(buffer) - self._tags.longest))
        return at if at >= 0 and buffer[at:] in self._tags.beginnings else len(buffer)

    def _say(self, name: str, text: str) -> None:
        if text:
            kind, tool = self._tags.kinds[name]
            self._pieces.append(Piece(kind, text, self._block, tool))

    def _text(self, text: str) -> None:
        if self._open:
            self._open[-1].body += text
        if len(self._open) <= 1:  # deeper text waits until a closing tag decides what it is
            self._say(self._open[0].name if self._open else "", text)

    def _tag(self, match: re.Match[str], at: int) -> None:
        slash, name = match.groups()
        decided = self.call is not None or (self.answer is not None and name in self._tags.tools)
        if decided or (not slash and name == "think" and self._open):
            self._text(match[0])
        elif not slash:
            self._begin(name, at)
        else:
            self._finish(name, match[0], at)

    def _begin(self, name: str, at: int) -> None:
        if len(self._open) == 1 and self._open[0].name == name:
            self._open.pop()  # the nearest opening tag counts, so this one can no longer be closed
        self._open.append(_Open(name, at))
        if len(self._open) == 1:
            self._block += 1

    def _finish(self, name: str, tag: str, at: int) -> None:
        depth = next((i for i in reversed(range(len(self._open))) if self._open[i].name == name), None)
        if depth is not None:
            self._close(depth, at + len(tag))
            return
        self._text(tag)
        if name in self._tags.tools:
            self.call = Block(name, "", at, at + len(tag), f"{tag} closes a call that was never opened")

    def _close(self, depth: int, end: int) -> None:
        """Close an open tag; what was opened inside it was text, and so was what was opened around it."""
        closed, inside = self._open[depth], _raw(self._open[depth + 1 :])
        closed.body += inside
        if depth:
            self._abandon(end, upto=depth)
            self._block += 1
            self._say(closed.name, closed.body)
        else:
            self._say(closed.name, inside)
        self._open.clear()
        self._block += 1
        if closed.name == "think":
            self.thoughts.append(closed.body)
        elif closed.name == "answer":
            self.answer = closed.body
        else:
            self.call = Block(closed.name, closed.body, closed.start, end)

    def _abandon(self, end: int, upto: int | None = None) -> None:
        """Give up the outermost open tag: everything up to the closed one, or to the end, belongs to it."""
        first, inside = self._open[0], _raw(self._open[1:upto])
        self._say(first.name, inside)
        if first.name == "think":
            self.thoughts.append(first.body + inside)
        elif first.name in self._tags.tools and upto is None and self.call is None:
            self.call = Block(first.name, "", first.start, end, f"<{first.name}> was never closed")


def _raw(opened: Sequence[_Open]) -> str:
    return "".join(f"<{tag.name}>{tag.body}" for tag in opened)
