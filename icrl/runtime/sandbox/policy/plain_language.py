"""Python as it is: for sandboxes whose operating-system layers are all the fence that is wanted."""

from __future__ import annotations

import builtins
import importlib
from contextlib import suppress
from typing import Any

from icrl.runtime.sandbox.policy.source import keep_last_value, parse, run

__all__ = ["Plain"]


class Plain:
    r"""Runs programs with `exec` and returns the value of the last bare expression, nothing else.

    It refuses nothing. What a program can do is decided by the process that it runs in.

    Example:
        >>> language = Plain()
        >>> language.execute("import math\nmath.isqrt(10)", language.namespace())
        3
    """

    def prepare(self, modules: tuple[str, ...]) -> None:
        """Import the modules that are installed."""
        for name in modules:
            with suppress(ImportError):
                importlib.import_module(name)

    def namespace(self) -> dict[str, Any]:
        """Return the globals of a fresh main module."""
        return {"__name__": "__main__", "__builtins__": builtins}

    def execute(self, code: str, namespace: dict[str, Any]) -> Any:
        """Run a program; see `icrl.runtime.sandbox.language.Language`."""
        tree = parse(code)
        keep_last_value(tree)
        return run(tree, namespace)
