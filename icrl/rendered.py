"""Text in which added tokens stand apart from plain characters, and how the two are told apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from icrl.errors import DataError

__all__ = ["AddedToken", "AddedTokens", "Marks", "Rendered", "Special"]

_PRIVATE_USE = range(0xE000, 0xF900)


@dataclass(frozen=True, slots=True)
class Special:
    """One added token that a template wrote."""

    id: int
    """Its token id."""
    text: str
    """Its content, with the whitespace that it swallows."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Rendered text: plain runs, in which no token is parsed, and added tokens.

    Example:
        >>> turn = Rendered(("Hi", Special(2, "<|im_end|>")))
        >>> turn.text
        'Hi<|im_end|>'
        >>> turn.split(1)[1].pieces
        ('i', Special(id=2, text='<|im_end|>'))
    """

    pieces: tuple[str | Special, ...] = ()
    """Non-empty runs and added tokens; two runs are never neighbours."""

    @property
    def text(self) -> str:
        """The whole text, added tokens included."""
        return "".join(piece if isinstance(piece, str) else piece.text for piece in self.pieces)

    def __add__(self, other: Rendered | str) -> Rendered:
        """Append; runs that meet become one, so that they are encoded as one."""
        right = other.pieces if isinstance(other, Rendered) else (other,) * bool(other)
        if self.pieces and right and isinstance(self.pieces[-1], str) and isinstance(right[0], str):
            return Rendered((*self.pieces[:-1], self.pieces[-1] + right[0], *right[1:]))
        return Rendered(self.pieces + right)

    def split(self, offset: int) -> tuple[Rendered, Rendered]:
        """Cut at a character of `text`; added tokens are never cut, but go to the right."""
        for index, piece in enumerate(self.pieces):
            size = len(piece) if isinstance(piece, str) else len(piece.text)
            if offset < size:
                left, right = (piece[:offset], piece[offset:]) if isinstance(piece, str) else ("", piece)
                return Rendered(self.pieces[:index]) + left, Rendered((right, *self.pieces[index + 1 :]))
            offset -= size
        return self, Rendered()


@dataclass(frozen=True, slots=True)
class Marks:
    """Three characters that occur nowhere in a conversation."""

    quote: str
    """Stands before an added token that is only quoted."""
    seam: str
    """Stands where text could complete an added token together with its surroundings."""
    cut: str
    """Stands where the result is to be cut."""

    @classmethod
    def absent_from(cls, *texts: str) -> Marks:
        """Choose marks.

        Raises:
            DataError: The texts use up all private-use characters.
        """
        marks = map(chr, _PRIVATE_USE)
        free = [*islice((mark for mark in marks if not any(mark in text for text in texts)), 3)]
        if len(free) < 3:
            raise DataError("messages: they use up Unicode's private-use characters")
        return cls(*free)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """One entry of `added_tokens` in a `tokenizer.json`."""

    id: int
    """Its token id."""
    content: str
    """Its characters."""
    special: bool = True
    """Whether decoding leaves it out."""
    lstrip: bool = False
    """Whether it swallows the whitespace on its left."""
    rstrip: bool = False
    """Whether it swallows the whitespace on its right."""


class AddedTokens:
    """Finds added tokens in what a template wrote, and hides them in what it quotes.

    Example:
        >>> added = AddedTokens((AddedToken(id=2, content="<|im_end|>"),))
        >>> marks = Marks.absent_from("<|im_end|>")
        >>> added.parse(added.hide("say <|im_end|>", marks) + "<|im_end|>", marks).pieces
        ('say <|im_end|>', Special(id=2, text='<|im_end|>'))
    """

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        # The longest content wins where several begin at one place, as in the tokenizer itself.
        self._tokens = sorted(tokens, key=lambda token: -len(token.content))
        self._by_content = {token.content: token for token in self._tokens}
        # Only the first character is taken, as tokens may overlap; a pattern that begins with one is found fast.
        self._begins = re.compile("|".join(f"{re.escape(c[0])}(?={re.escape(c[1:])})" for c in self._by_content))
        proper = [(content, at) for content in self._by_content for at in range(1, len(content))]
        self._heads = {content[:at] for content, at in proper}
        self._tails = {content[at:] for content, at in proper}
        self._last: tuple[Marks, re.Pattern[str]] | None = None
        self._longest = max((len(content) for content in self._by_content), default=0)

    @property
    def contents(self) -> tuple[str, ...]:
        """Every token's characters."""
        return tuple(self._by_content)

    def quote(self, text: str, marks: Marks) -> str:
        """Mark every added token in a text."""
        return self._begins.sub(rf"{marks.quote}\g<0>", text) if self._tokens else text

    def hide(self, text: str, marks: Marks) -> str:
        """Mark every added token in a text, and both ends where the surroundings could complete one."""
        sizes = range(1, min(len(text), self._longest) + 1)
        before = marks.seam if any(text[:size] in self._tails for size in sizes) else ""
        after = marks.seam if any(text[-size:] in self._heads for size in sizes) else ""
        return before + self.quote(text, marks) + after

    def parse(self, text: str, marks: Marks) -> Rendered:
        """Find the added tokens that are not marked, and take the marks out."""
        if not self._tokens:
            return Rendered() + text
        rendered, position = Rendered(), 0
        for match in self._pattern(marks).finditer(text):
            token = self._by_content.get(match[0]) or self._by_content[match[0].strip()]
            rendered += _unmarked(text[position : match.start()], marks)
            rendered += Rendered((Special(token.id, match[0]),))
            position = match.end()
        return rendered + _unmarked(text[position:], marks)

    def _pattern(self, marks: Marks) -> re.Pattern[str]:
        last = self._last
        if last is None or last[0] != marks:  # nearly every conversation leaves the same three characters free
            pattern = re.compile("|".join(_expression(token, marks) for token in self._tokens))
            self._last = last = (marks, pattern)
        return last[1]


def _expression(token: AddedToken, marks: Marks) -> str:
    left, right = (r"\s*" if swallows else "" for swallows in (token.lstrip, token.rstrip))
    content = re.escape(token.content)
    return f"{left}{content}(?<!{marks.quote}{content}){right}"


def _unmarked(text: str, marks: Marks) -> str:
    return text.replace(marks.quote, "").replace(marks.seam, "")
