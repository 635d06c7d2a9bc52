"""Stop strings over sampled tokens; a string may begin and end inside tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["StopStrings"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StopStrings:
    """Tells after which sampled token one of some strings is complete.

    Almost every token is dismissed by a table lookup: it can only complete a string if its text begins with the
    string's ending or contains it whole. Only then are the last few tokens decoded.

    Args:
        strings: The stop strings.
        decode: Turns token ids into text.

    Example:
        >>> stop = StopStrings(("</a>",), lambda ids: "".join(map(chr, ids)))
        >>> [stop.ends([ord(c) for c in text]) for text in ("</a", "</a>", "<a>")]
        [False, True, False]
    """

    __slots__ = ("_candidates", "_decode", "_strings", "_window")

    def __init__(self, strings: tuple[str, ...], decode: Callable[[Sequence[int]], str]) -> None:
        self._strings = strings
        self._decode = decode
        self._candidates: dict[int, bool] = {}
        # A token with text has at least one byte; four more cover a character that is cut at the window's start.
        self._window = max(len(string.encode()) for string in strings) + 4

    def ends(self, ids: Sequence[int]) -> bool:
        """Tell whether the last of the sampled `ids` completes a stop string."""
        token = ids[-1]
        candidate = self._candidates.get(token)
        if candidate is None:
            candidate = self._candidates[token] = self._may_end(self._decode([token]))
        if not candidate:
            return False
        text = self._decode(ids[-self._window :])
        return any(string in text for string in self._strings)

    def _may_end(self, text: str) -> bool:
        """Judge a token by its text alone; half characters could be anything, a leading space may be dropped."""
        if REPLACEMENT in text:
            return True
        return any(_completes(string, piece) for string in self._strings for piece in (text, " " + text))


def _completes(string: str, piece: str) -> bool:
    return string in piece or any(piece.startswith(string[i:]) for i in range(1, len(string)))
