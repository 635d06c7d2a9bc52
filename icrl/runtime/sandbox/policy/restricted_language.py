"""The restricted language: ordinary Python with the doors that lead out of a program closed."""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from icrl.imports import require
from icrl.runtime.sandbox.language import Refused
from icrl.runtime.sandbox.policy import special
from icrl.runtime.sandbox.policy.modules import facade
from icrl.runtime.sandbox.policy.scope import caller, fresh_builtins, hidden
from icrl.runtime.sandbox.policy.source import TEXT_FILENAME, keep_last_value, parse, run

__all__ = ["Restricted"]

_WARM_UP = """
import math
class A:
    x: int = 1
    def __init__(self):
        self._x = [i for i in range(2)]
        self.x += 1
try:
    f"{A().x:.2f}" + "{}".format(math.pi)
except ValueError:
    pass
(lambda *a, **k: a)(1)
"""
_SHOWN = 3


class Restricted:
    r"""Runs ordinary model-written Python and refuses what reaches for files, processes or the interpreter.

    It exists to tell a model early and readably what it cannot have, and to stop accidents. It is the second fence,
    never the boundary: whoever controls an array's memory layout can step over it, and a seventh hole in a policy of
    this kind should be expected. The process that a program runs in has to be locked down regardless.

    Raises:
        MissingExtraError: RestrictedPython is not installed.

    Example:
        >>> language = Restricted()
        >>> language.execute("import math\n[math.isqrt(n) for n in (10, 17)]", language.namespace())
        [3, 4]
        >>> language.execute("().__subclasses__", language.namespace())
        Traceback (most recent call last):
        icrl.runtime.sandbox.language.Refused: line 1: the attribute .__subclasses__ is not available here
    """

    def __init__(self) -> None:
        require("RestrictedPython", extra="sandbox")
        from icrl.runtime.sandbox.policy.transformer import Transformer

        special.install()
        self._transformer = Transformer

    def prepare(self, modules: tuple[str, ...]) -> None:
        """Import the modules that are installed and allowed, guard sympy, and run a first program to warm up."""
        for name in modules:
            with suppress(ImportError):
                facade(name)
        self.execute(_WARM_UP, self.namespace())

    def namespace(self) -> dict[str, Any]:
        """Return the globals of a fresh main module, with built-ins of its own."""
        scope = fresh_builtins()
        scope["eval"] = self._evaluator(scope, "eval")
        scope["exec"] = self._evaluator(scope, "exec")
        return {"__name__": "__main__", "__builtins__": scope}

    def execute(self, code: str, namespace: dict[str, Any]) -> Any:
        """Run a program; see `icrl.runtime.sandbox.language.Language`."""
        tree = parse(code)
        keep_last_value(tree)
        self._transform(tree)
        return run(tree, namespace)

    def _transform(self, tree: ast.AST) -> None:
        transformer = self._transformer()
        transformer.visit(tree)
        if transformer.errors:
            more = len(transformer.errors) - _SHOWN
            raise Refused("; ".join(transformer.errors[:_SHOWN]) + (f"; and {more} more" if more > 0 else ""))

    def _evaluator(self, scope: dict[str, Any], mode: str) -> Callable[..., Any]:
        """Return `eval` or `exec` for programs: the text obeys the same policy, in the caller's variables."""

        def evaluate(source: str, variables: Any = None, inner: Any = None, /) -> Any:
            if type(source) is not str:
                raise Refused(f"{mode} takes text here")
            frame = caller()
            tree: Any = ast.parse(source.strip() if mode == "eval" else source, TEXT_FILENAME, mode)
            self._transform(tree)
            compiled = compile(tree, TEXT_FILENAME, mode, dont_inherit=True)
            outer = frame.f_globals if variables is None else _checked(variables)
            if outer.get("__builtins__") is not scope:
                outer["__builtins__"] = dict(scope)  # always: Python would put in its own for a dict that has none
            local = frame.f_locals if variables is None and inner is None else inner
            return getattr(builtins, mode)(compiled, outer, local)

        evaluate.__name__ = mode
        return evaluate


def _checked(given: Any) -> dict[str, Any]:
    proxied = type(given) is types.MappingProxyType  # what globals() gave
    variables: dict[str, Any] = dict(given) if proxied else given
    names = set(variables) - {"__builtins__"} if type(variables) is dict else {None}
    if any(type(name) is not str or hidden(name) for name in names):
        raise Refused("the variables for eval and exec are a plain dict of ordinary names")
    return variables
