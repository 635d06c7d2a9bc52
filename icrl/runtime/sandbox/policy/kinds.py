"""`type`, metaclasses and the class statement, without the power to make classes that Python's internals act on."""

from __future__ import annotations

import abc
import builtins
import enum
import io
import string
import types
from collections.abc import Callable
from typing import Any

from icrl.runtime.sandbox.language import Refused
from icrl.runtime.sandbox.policy.names import DEFINABLE, FRAME_ATTRIBUTES, is_dunder
from icrl.runtime.sandbox.policy.values import vet

__all__ = ["ABCMeta", "EnumMeta", "Kind", "attribute_hook", "build_class", "kind_of", "metaclass"]


class _KindOfKind(type):
    def __instancecheck__(cls, thing: Any) -> bool:
        return isinstance(thing, type)

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        return kind_of(arguments[0]) if len(arguments) == 1 and not keywords else _new_class(*arguments, **keywords)

    def __repr__(cls) -> str:
        return "<class 'type'>"


class Kind(metaclass=_KindOfKind):
    """What programs know as `type`: `type(x)`, `type(name, bases, attributes)` and `isinstance(x, type)`."""

    __name__ = "type"

    def __class_getitem__(cls, item: Any) -> types.GenericAlias:
        return types.GenericAlias(type, item)


class _StandIn:
    """A metaclass that a class statement may name, and that can be used for nothing else."""

    __slots__ = ("_real",)

    def __init__(self, real: type) -> None:
        self._real = real


ABCMeta = _StandIn(abc.ABCMeta)
EnumMeta = _StandIn(enum.EnumMeta)
_IN_MEMORY = (io.BytesIO, io.StringIO)
_METACLASSES = (ABCMeta, EnumMeta)


def kind_of(thing: Any) -> Any:
    """Return the class of an object; the class of a class is `Kind`.

    Example:
        >>> kind_of(3), kind_of(int) is Kind
        (<class 'int'>, True)
    """
    kind = type(thing)
    if kind is types.GenericAlias or (
        issubclass(kind, io.IOBase) and kind.__module__ == "_io" and kind not in _IN_MEMORY
    ):
        raise Refused(f"the class {kind.__name__} is not available here")
    return Kind if issubclass(kind, type) else kind


def _new_class(name: str, bases: tuple[Any, ...], attributes: dict[str, Any], **keywords: Any) -> Any:
    for attribute in attributes:
        if type(attribute) is not str or attribute == "__getattr__":
            raise Refused(f"type(...) may not define {attribute!r}; write a class statement")
        if is_dunder(attribute) and attribute not in DEFINABLE | {"__doc__", "__module__", "__qualname__"}:
            raise Refused(f"the special name {attribute} may not be defined here")
    _check_bases(bases)
    made = types.new_class(name, bases, keywords, lambda body: body.update(attributes, __module__="__main__"))
    return _checked(made)


def metaclass(chosen: Any) -> type:
    """Return the real metaclass behind the one that a class statement names.

    Raises:
        Refused: It is another than `type`, `abc.ABCMeta` and `enum.EnumMeta`.
    """
    if chosen is Kind:
        return type
    if any(chosen is known for known in _METACLASSES):
        return chosen._real  # type: ignore[no-any-return]
    raise Refused("only ABCMeta can be a metaclass here; use a class decorator or __init_subclass__ instead")


def build_class(body: Callable[..., Any], name: str, *bases: Any, **keywords: Any) -> Any:
    """Do what a class statement does, for bases that are safe to derive from.

    Raises:
        Refused: A base is a metaclass or an exception group, or `__match_args__` names what patterns may not read.
    """
    _check_bases(bases)
    return _checked(builtins.__build_class__(body, name, *bases, **keywords))


def _check_bases(bases: tuple[Any, ...]) -> None:
    for base in bases:
        if base is Kind or any(base is known for known in _METACLASSES):
            raise Refused("metaclasses cannot be written here; use a class decorator or __init_subclass__ instead")
        if isinstance(base, type) and issubclass(base, (type, BaseExceptionGroup, string.Formatter)):
            raise Refused(f"{base.__name__} cannot be derived from here")


def _checked(made: Any) -> Any:
    names = type.__getattribute__(made, "__dict__").get("__match_args__", ()) if isinstance(made, type) else ()
    for name in names if type(names) is tuple else ():
        if type(name) is not str or name.startswith("_") or name in FRAME_ATTRIBUTES:
            raise Refused(f"__match_args__ may not name {name!r}")
    return made


def attribute_hook(function: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Wrap a `__getattr__` so that it is never asked for special names: C code would believe the answer."""

    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807 - tracebacks name it
        if is_dunder(name):
            raise AttributeError(name)
        return function(self, name)

    return __getattr__


def classes_of(thing: Any, name: str) -> tuple[Any, ...]:
    """Return `thing.__mro__` or `thing.__bases__` if nothing in it is withheld."""
    return tuple(vet(kind, name) for kind in type.__getattribute__(thing, name))
