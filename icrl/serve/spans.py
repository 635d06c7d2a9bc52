"""Where in a turn's text its words and its thoughts stand, and which tokens they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from icrl.runtime.dialect import Piece
from icrl.tokenizer import Tokenizer

__all__ = ["Label", "Span", "place", "tokens_of"]

Label = Literal["thought", "said"]
"""What a reader is told a stretch of text as."""

_MARK = re.compile(r"</?[\w.-]+>")


class Span(NamedTuple):
    """A stretch of a turn's text."""

    label: Label
    """What it was told as."""
    start: int
    """Its first character."""
    end: int
    """One past its last."""


def place(text: str, told: Iterable[tuple[Label | None, Piece]]) -> Iterator[Span]:
    """Find a parser's pieces in the text that it read.

    Pieces come in the order of the text, those of a block without a gap, and between blocks there are only the
    dialect's marks; so each block begins right here or after the next marks.

    Args:
        text: The turn.
        told: All pieces of the turn in order; `None` for those that nobody was told.

    Example:
        >>> pieces = [("thought", Piece("thought", " hm ", 1)), ("said", Piece("answer", "e", 3))]
        >>> list(place("<think> hm </think><answer>e</answer>", pieces))
        [Span(label='thought', start=7, end=11), Span(label='said', start=27, end=28)]
    """
    at = 0
    for (label, _), pieces in groupby(told, key=lambda pair: (pair[0], pair[1].block)):
        block = "".join(piece.text for _, piece in pieces)
        at = _find(text, block, at)
        if at < 0:
            return
        if label is not None:
            yield Span(label, at, at + len(block))
        at += len(block)


def _find(text: str, block: str, at: int) -> int:
    while not text.startswith(block, at):
        mark = _MARK.match(text, at)
        if mark is None:
            return text.find(block, at)
        at = mark.end()
    return at


def tokens_of(tokenizer: Tokenizer, ids: Sequence[int], spans: Iterable[Span]) -> list[int]:
    """Return the positions of the tokens that reach into some spans, in order.

    Args:
        tokenizer: Decodes.
        ids: The turn's tokens.
        spans: Stretches of their text.
    """
    found: set[int] = set()
    for span in spans:
        if span.start < span.end:
            found.update(range(*tokenizer.locate(ids, span.start, span.end)))
    return sorted(found)
