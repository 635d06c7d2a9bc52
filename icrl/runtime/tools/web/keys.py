"""Keys of search services: held so that nothing prints them."""

from __future__ import annotations

import os
import re
from typing import NoReturn

from icrl.errors import ConfigError

__all__ = ["Key"]

_KEY = re.compile(r"[\x21-\x7e]+")


class Key:
    """A secret that shows itself only when it is asked to.

    Args:
        value: The key; if not given, the environment variable is read.
        variable: Name of the environment variable.

    Raises:
        ConfigError: There is neither, or it has characters that no key has; the message does not show it.

    Example:
        >>> Key("s3cret", variable="SERPER_API_KEY")
        <key SERPER_API_KEY>
    """

    __slots__ = ("_value", "_variable")

    def __init__(self, value: str | None, *, variable: str) -> None:
        value = os.environ.get(variable, "") if value is None else value
        if not value:
            raise ConfigError(f"{variable}: not set; put the service's key into this environment variable")
        if not _KEY.fullmatch(value):
            raise ConfigError(f"{variable}: has spaces or characters that do not belong into a key")
        self._value = value
        self._variable = variable

    def __repr__(self) -> str:
        return f"<key {self._variable}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key does not leave its process")

    def reveal(self) -> str:
        """Return the key itself."""
        return self._value
