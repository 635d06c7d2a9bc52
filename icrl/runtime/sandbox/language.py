"""What the process that runs a program needs from a language policy."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Language", "Refused"]


class Refused(Exception):
    """The policy does not allow something; the message is for the model to read."""


class Language(Protocol):
    """Turns source text into effects inside a child that is already locked down.

    One object is made in the zygote (`prepare` runs there, once) and used in every child that is forked from it.
    """

    def prepare(self, modules: tuple[str, ...]) -> None:
        """Import the modules that programs may want and install guards on them, before any program is seen."""
        ...

    def namespace(self) -> dict[str, Any]:
        """Return fresh globals for one program or one REPL session."""
        ...

    def execute(self, code: str, namespace: dict[str, Any]) -> Any:
        """Run a program in a namespace and return the value of its last bare expression, else `None`.

        Prints go to `sys.stdout` as it is when this is called.

        Raises:
            Refused: The policy does not allow something in it.
            BaseException: Whatever the program raises, `SyntaxError` included; frames of the snippet have the file
                name `"<snippet>"`.
        """
        ...
