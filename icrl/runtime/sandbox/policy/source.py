"""Parsing a snippet, keeping the value of its last bare expression, and running it with its lines in tracebacks."""

from __future__ import annotations

import ast
import linecache
import warnings
from typing import Any

__all__ = ["FILENAME", "TEXT_FILENAME", "keep_last_value", "parse", "run"]

FILENAME = "<snippet>"
TEXT_FILENAME = "<snippet text>"  # what a program evaluates itself
_VALUE = "<value>"  # not an identifier: no program can read or write it


def parse(code: str) -> ast.Module:
    r"""Parse a program and remember its lines for tracebacks.

    Raises:
        SyntaxError: It is not Python; file name and line are the snippet's.

    Example:
        >>> len(parse("x = 1\nx").body)
        2
    """
    linecache.cache[FILENAME] = (len(code), None, [line + "\n" for line in code.splitlines()], FILENAME)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "invalid escape sequence" tells the model nothing that it could use
        return ast.parse(code, FILENAME)


def keep_last_value(tree: ast.Module) -> None:
    """Turn a last bare expression into an assignment that `run` picks up."""
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        target = ast.copy_location(ast.Name(_VALUE, ast.Store()), last)
        tree.body[-1] = ast.copy_location(ast.Assign([target], last.value), last)


def run(tree: ast.Module, namespace: dict[str, Any]) -> Any:
    r"""Compile and run a program; return the value of its last bare expression, else `None`.

    Example:
        >>> tree = parse("x = 20\nx + 1")
        >>> keep_last_value(tree)
        >>> run(tree, {})
        21
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        code = compile(tree, FILENAME, "exec", dont_inherit=True)
    try:
        exec(code, namespace)
        return namespace.get(_VALUE)
    finally:
        namespace.pop(_VALUE, None)
