"""Ending an answer at a client's stop string: the words up to it are told, the string is not."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopWords"]


class StopWords:
    """Lets text through up to the first stop string, however the text is divided.

    Stop strings are looked for in the answer's words only. A thought or a call that contains one goes on, because the
    client sees neither as its answer. The string that is complete first counts; of several that end at the same
    character, the longest.

    Args:
        words: The strings.

    Example:
        >>> stop = StopWords(["END"])
        >>> stop.feed("one E"), stop.feed("N"), stop.feed("D two"), stop.has_stopped
        ('one ', '', '', True)
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._held = ""
        self.has_stopped = False
        """Whether a stop string was met."""

    def feed(self, text: str) -> str:
        """Take more text and return what may be shown now."""
        if self.has_stopped or not self._words:
            return "" if self.has_stopped else text
        text = self._held + text
        met = [(at + len(word), at) for word in self._words if (at := text.find(word)) >= 0]
        if met:
            self.has_stopped, self._held = True, ""
            return text[: min(met)[1]]
        keep = max(_overlap(text, word) for word in self._words)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def close(self) -> str:
        """Return what was held back; nothing more will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, word: str) -> int:
    """Count the last characters of a text that could begin a stop string."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
