"""Library functions that would read or write attributes past the guards, or evaluate text, in a guarded form."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from icrl.runtime.sandbox.policy.attributes import check_readable, read, refused

__all__ = [
    "attrgetter",
    "lambdify",
    "methodcaller",
    "redirect_stderr",
    "redirect_stdout",
    "set_recursion_limit",
    "singledispatch",
    "update_wrapper",
    "wraps",
]

_COPIED = ("__name__", "__qualname__", "__doc__")
_DEEPEST = 100_000


def wraps(wrapped: Any) -> Callable[[Any], Any]:
    """Do what `functools.wraps` does, copying the name and the docstring only.

    Example:
        >>> wraps(len)(lambda: 0).__name__
        'len'
    """
    return lambda wrapper: update_wrapper(wrapper, wrapped)


def update_wrapper(wrapper: Any, wrapped: Any) -> Any:
    """Do what `functools.update_wrapper` does, copying the name and the docstring only."""
    if isinstance(wrapper, type):
        raise refused("update_wrapper of a class")
    for name in _COPIED:
        value = getattr(wrapped, name, None)
        if isinstance(value, str):
            setattr(wrapper, name, value)
    wrapper.__wrapped__ = wrapped
    return wrapper


def attrgetter(*names: str) -> Callable[[Any], Any]:
    """Do what `operator.attrgetter` does, through the guard."""
    if not names:
        raise TypeError("attrgetter expected at least 1 argument, got 0")

    def get(thing: Any, path: str) -> Any:
        for name in path.split("."):
            thing = read(thing, check_readable(name))
        return thing

    if len(names) == 1:
        return lambda thing: get(thing, names[0])
    return lambda thing: tuple(get(thing, path) for path in names)


def methodcaller(name: str, /, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    """Do what `operator.methodcaller` does, through the guard."""
    check_readable(name)
    return lambda thing: read(thing, name)(*args, **kwargs)


def singledispatch(function: Callable[..., Any]) -> Any:
    """Do what `functools.singledispatch` does, without evaluating annotations that are text."""
    dispatcher = functools.singledispatch(function)
    register: Callable[..., Any] = dispatcher.register

    def guarded(kind: Any, implementation: Any = None) -> Any:
        by_annotation = type(kind) is FunctionType
        if by_annotation and any(isinstance(value, str) for value in kind.__annotations__.values()):
            raise refused("register with annotations in quotes")
        if not by_annotation and not isinstance(kind, type):
            raise refused("register of something that is no class")
        return register(kind) if implementation is None else register(kind, implementation)

    dispatcher.register = guarded  # type: ignore[assignment]
    return dispatcher


@contextlib.contextmanager
def redirect_stdout(target: Any) -> Iterator[Any]:
    """Do what `contextlib.redirect_stdout` does; the real stream is kept where no subclass finds it."""
    real, sys.stdout = sys.stdout, target
    try:
        yield target
    finally:
        sys.stdout = real


@contextlib.contextmanager
def redirect_stderr(target: Any) -> Iterator[Any]:
    """Do what `contextlib.redirect_stderr` does; see `redirect_stdout`."""
    real, sys.stderr = sys.stderr, target
    try:
        yield target
    finally:
        sys.stderr = real


def set_recursion_limit(limit: int) -> None:
    """Set the recursion limit, within reason."""
    sys.setrecursionlimit(min(limit, _DEEPEST))


def lambdify(args: Any, expr: Any, modules: Any = None, *, dummify: bool = False, cse: Any = False) -> Any:
    """Do what `sympy.lambdify` does, with its own printers only."""
    writer: Any = importlib.import_module("sympy.utilities.lambdify")
    return writer.lambdify(args, expr, modules, dummify=dummify, cse=cse)
