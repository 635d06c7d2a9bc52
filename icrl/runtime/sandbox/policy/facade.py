"""What a program holds in place of a module."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["Facade"]


class Facade(ModuleType):
    """A module of which only allowed names exist, each looked up when it is first asked for.

    Pattern matching, star imports and C code read attributes without a guard; here there is nothing to find.

    Args:
        name: The module that it stands for.
        resolve: Returns the value of a name in it; raises `AttributeError` if there is none, or none for programs.

    Example:
        >>> Facade("math", lambda module, name: f"{module}.{name}").pi
        'math.pi'
    """

    def __init__(self, name: str, resolve: Callable[[str, str], Any]) -> None:
        super().__init__(name)
        self._resolve = resolve

    def __getattr__(self, name: str) -> Any:
        value = self.__dict__["_resolve"](self.__name__, name)
        self.__dict__[name] = value
        return value

    def __repr__(self) -> str:
        return f"<module {self.__name__!r}>"
