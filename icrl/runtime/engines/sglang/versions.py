"""Names of weights at the server, numbers of weights here."""

from __future__ import annotations

__all__ = ["Versions"]


class Versions:
    """Translates the names that servers give to weights into the integers that are counted here.

    Args:
        name: Name of the weights at connect. A decimal number stands for itself; any other name, such as `default`,
            is the version that the run began with: 0. A server that is called `7` at connect and `default` later was
            restarted, and has 7 no more.

    Example:
        >>> versions = Versions("default")
        >>> versions.first, versions.number("7"), versions.number("default"), Versions("7").number("default")
        (0, 7, 0, 0)
    """

    def __init__(self, name: str) -> None:
        self.first = int(name) if _decimal(name) else 0
        """The version at connect."""
        self._known = {name: self.first}

    def number(self, name: str) -> int:
        """Return the version that a name stands for; a foreign name is 0."""
        number = self._known.get(name)
        if number is None:
            number = int(name) if _decimal(name) else 0
            if len(self._known) < 1024:
                self._known[name] = number
        return number


def _decimal(name: str) -> bool:
    return name.isascii() and name.isdecimal()
