"""Names of weights at the server, numbers of weights here."""

from __future__ import annotations

import secrets

from icrl.runtime.engines.protocol import FOREIGN
from icrl.trajectory import VersionSpan

__all__ = ["MIXED", "TOKEN", "UNTOUCHED", "Versions", "crossed"]

TOKEN = secrets.token_hex(4)
"""Tells the weights that this process sends from those of other runs, which count from 0, too."""

UNTOUCHED = "default"
"""What a server calls the weights that it was started with."""

MIXED = "mixed"
"""What a server is told to call its weights after an update that failed half-way."""


class Versions:
    """Translates the names that servers give to weights into the integers that are counted here, and back.

    Weights that are sent from here are called `version@token`, with a token that no other process has. Until some
    were sent, somebody else may train there, and the number in any name is the version; a name without one, such as
    `default`, is the version that a run begins with: 0. Afterwards only what was sent from here counts; and what was
    there at connect, or comes with a restart, as long as it is older.

    Args:
        name: Name of the weights at connect.

    Example:
        >>> versions = Versions("7@5f0c21aa")
        >>> versions.first, versions.number("8@5f0c21aa"), versions.number("default")
        (7, 8, 0)
        >>> versions.number("mixed") == FOREIGN
        True
        >>> versions.took(8)
        >>> versions.number(versions.name(8)), versions.number("7@5f0c21aa"), versions.number("8@5f0c21aa") == FOREIGN
        (8, 7, True)
    """

    def __init__(self, name: str) -> None:
        self.first = self.found(name)
        """The version at connect."""
        self._at_connect = name
        self._token = TOKEN
        self._taken: int | None = None
        self._known: dict[str, int] = {}

    def name(self, version: int) -> str:
        """Return what a server is to call weights that are sent from here."""
        return f"{version}@{self._token}"

    def took(self, version: int) -> None:
        """Note that the server has taken weights from here."""
        self._taken = version
        self._known.clear()

    def found(self, name: str) -> int:
        """Return the version of what a server holds when it is connected to, whoever sent it; 0 if it has no number."""
        return _counted(name) or 0

    def intruded(self, name: str) -> bool:
        """Say whether a server that took weights from here has others now that somebody else has sent."""
        return self._taken is not None and _counted(name) is not None and not self._ours(name)

    def number(self, name: str) -> int:
        """Return the version that a name in a reply stands for; `FOREIGN` if it is not the caller's to count."""
        number = self._known.get(name)
        if number is None:
            number = self._number(name)
            if len(self._known) < 1024:
                self._known[name] = number
        return number

    def _ours(self, name: str) -> bool:
        return name.endswith(f"@{self._token}")

    def _number(self, name: str) -> int:
        number = self.found(name)
        if name == MIXED:
            return FOREIGN
        if self._taken is None or self._ours(name):
            return number
        # An older version is what a request began with that crosses an update, or what a restart brought back.
        return number if name in (self._at_connect, UNTOUCHED) and number < self._taken else FOREIGN


def crossed(spans: tuple[VersionSpan, ...], older: int, newer: int) -> tuple[VersionSpan, ...]:
    """Correct the spans of a request that went on in place over an update.

    A server computes a step while it reports the one before. So at a pause a token of every request has been sampled
    and not been counted; the server counts it to the weights that come next, and if it is the first, all of the
    request. It is counted here to the weights that sampled it. A request that was only waiting may find, under its
    key, what the older weights left in the cache; so its first token stands for them, too. (It does as well where a
    server was told not to compute ahead.)

    Args:
        spans: What the server says.
        older: Version before the update.
        newer: Version after it.

    Example:
        >>> [(s.version, s.start, s.end) for s in crossed((VersionSpan(version=4, start=0, end=9),), 3, 4)]
        [(3, 0, 1), (4, 1, 9)]
    """
    found: list[VersionSpan] = []
    for span in spans:
        if span.version != newer or newer == older or any(s.version == newer for s in found):
            found.append(span)
            continue
        begun = found.pop() if found and found[-1].version == older else span
        found.append(VersionSpan(version=older, start=begun.start, end=span.start + 1))
        if span.start + 1 < span.end:
            found.append(VersionSpan(version=newer, start=span.start + 1, end=span.end))
    return tuple(found)


def _counted(name: str) -> int | None:
    """Return the number in a name, if there is one: `7` and `7@5f0c21aa` are 7."""
    number = name.partition("@")[0]
    return int(number) if number.isascii() and number.isdecimal() else None
