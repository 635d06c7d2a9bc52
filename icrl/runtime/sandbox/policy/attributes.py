"""The guards that a transformed program calls for every attribute that it reads or writes.

They are the second fence, never the boundary: C code (an array with strides of its own choosing) can always reach
past them. The process around the program is what contains it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, MutableMapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from icrl.runtime.sandbox.policy.facade import Facade
from icrl.runtime.sandbox.policy.names import FRAME_ATTRIBUTES, HANDLED, READABLE, WRITABLE, is_dunder
from icrl.runtime.sandbox.policy.refusal import RefusedAttribute
from icrl.runtime.sandbox.policy.source import FILENAME, TEXT_FILENAME
from icrl.runtime.sandbox.policy.values import vet

__all__ = ["SPECIAL", "inplace", "is_own", "own_attributes", "read", "write", "write_private"]

_INPLACE: dict[str, Callable[[Any, Any], Any]] = {
    "+=": operator.iadd, "-=": operator.isub, "*=": operator.imul, "/=": operator.itruediv, "%=": operator.imod,
    "**=": operator.ipow, "<<=": operator.ilshift, ">>=": operator.irshift, "|=": operator.ior, "^=": operator.ixor,
    "&=": operator.iand, "//=": operator.ifloordiv, "@=": operator.imatmul,
}  # fmt: skip
_CHECKED = frozenset({int, float, complex, bool, list, tuple, dict, set, frozenset, bytes, bytearray, Facade})
"""Kinds whose attributes all come from the program, or were checked when they got there."""
_UNWRITABLE = (ModuleType, BuiltinFunctionType, MethodType)

SPECIAL: dict[str, Callable[[Any, str], Any]] = {}
"""Readers of attributes that mean something dangerous on some objects, by name."""


def is_own(thing: Any) -> bool:
    """Return whether a class, function or instance comes from the program itself.

    Example:
        >>> is_own(int), is_own(len), is_own(3)
        (False, False, False)
    """
    if type(thing) is FunctionType:
        return thing.__code__.co_filename in (FILENAME, TEXT_FILENAME)
    kind = thing if isinstance(thing, type) else type(thing)
    return bool(type.__getattribute__(kind, "__dict__").get("__module__") == "__main__")


def read(thing: Any, name: str) -> Any:
    """Return `thing.name` if the program may have it.

    Raises:
        RefusedAttribute: It may not.
        AttributeError: There is no such attribute.

    Example:
        >>> read(3, "real")
        3
        >>> read(3, "__reduce__")
        Traceback (most recent call last):
        icrl.runtime.sandbox.policy.refusal.RefusedAttribute: the attribute .__reduce__ is not available here
    """
    if name in SPECIAL:
        return SPECIAL[name](thing, name)
    if name[:1] == "_":
        return _read_underscored(thing, name)
    if type(thing) in _CHECKED:
        return getattr(thing, name)
    return vet(getattr(thing, name), name)


def _read_underscored(thing: Any, name: str) -> Any:
    if is_dunder(name):
        if name not in READABLE:
            raise refused(name)
    elif not (is_own(thing) or type(thing) is super):
        owner = getattr(thing, "__name__", type(thing).__name__)
        raise RefusedAttribute(f"{owner}.{name} is private to a library and not available here")
    return vet(getattr(thing, name), name)


def refused(name: str) -> RefusedAttribute:
    """Return the refusal of an attribute."""
    return RefusedAttribute(f"the attribute .{name} is not available here")


def write(thing: Any) -> Any:
    """Return an object whose attributes the program may set; that assignment is what follows.

    Raises:
        RefusedAttribute: It is a module, a built-in function, or a class or function of a library.
    """
    foreign = isinstance(thing, (type, FunctionType)) and not is_own(thing)
    if foreign or isinstance(thing, _UNWRITABLE) or type(thing) is super:
        what = getattr(thing, "__name__", type(thing).__name__)
        raise RefusedAttribute(f"attributes of {what} may not be changed here; define your own function or class")
    return thing


def write_private(thing: Any) -> Any:
    """Return an object whose underscored attributes the program may set: one of its own.

    Raises:
        RefusedAttribute: It belongs to a library.
    """
    if not is_own(thing):
        raise RefusedAttribute(f"private attributes of {type(thing).__name__} may not be changed here")
    return thing


def inplace(thing: Any, name: str, symbol: str) -> Callable[[Any], None]:
    """Read `thing.name`, and return what takes the right-hand side and writes the result back."""
    target = write_private(thing) if name.startswith("_") else write(thing)
    before = read(thing, name)
    return lambda value: setattr(target, name, _INPLACE[symbol](before, value))


class _Attributes(dict[str, Any]):
    """`vars(instance)` of one of the program's objects: a copy whose changes reach the object, names checked."""

    __slots__ = ("_target",)

    def __init__(self, target: dict[str, Any]) -> None:
        super().__init__(target)
        self._target = target

    def __setitem__(self, name: str, value: Any) -> None:
        if type(name) is not str or is_dunder(name):
            raise refused(str(name))
        self._target[name] = value
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self._target[name]

    update = MutableMapping.update
    pop = MutableMapping.pop
    popitem = MutableMapping.popitem
    clear = MutableMapping.clear
    setdefault = MutableMapping.setdefault


def own_attributes(thing: Any) -> dict[str, Any]:
    """Return `vars(thing)` in a form through which only ordinary names can be set.

    Raises:
        RefusedAttribute: The object is not the program's own.
        TypeError: It has no attributes of its own.
    """
    if not is_own(thing) or type(thing) is FunctionType:
        raise refused("__dict__")
    if isinstance(thing, type):
        names = type.__getattribute__(thing, "__dict__")
        return {name: value for name, value in names.items() if not is_dunder(name)}
    return _Attributes(object.__getattribute__(thing, "__dict__"))


def check_writable(thing: Any, name: Any) -> str:
    """Return the name if `setattr(thing, name, ...)` is allowed; refuse it otherwise."""
    if type(name) is not str:
        raise TypeError(f"attribute name must be string, not '{type(name).__name__}'")
    if name in FRAME_ATTRIBUTES or (is_dunder(name) and name not in WRITABLE):
        raise refused(name)
    (write_private if name.startswith("_") else write)(thing)
    return name


def check_readable(name: Any) -> str:
    """Return the name if it is a plain string that `getattr` may be given."""
    if type(name) is not str:
        raise TypeError(f"attribute name must be string, not '{type(name).__name__}'")
    if name in FRAME_ATTRIBUTES or (is_dunder(name) and name not in READABLE and name not in HANDLED):
        raise refused(name)
    return name
