"""Attributes that are harmless on most objects and a way out on some."""

from __future__ import annotations

from abc import ABCMeta
from collections import UserString
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, MethodDescriptorType, MethodType
from typing import Any

from icrl.runtime.sandbox.policy.attributes import (
    SPECIAL,
    check_writable,
    is_own,
    own_attributes,
    refused,
)
from icrl.runtime.sandbox.policy.formatting import Formatter, guarded_format
from icrl.runtime.sandbox.policy.kinds import classes_of, kind_of
from icrl.runtime.sandbox.policy.names import FRAME_ATTRIBUTES
from icrl.runtime.sandbox.policy.values import vet

__all__ = ["install"]

_RAW_MEMORY_AND_FILES = ("capsule", "cffi", "ctypes", "dump", "dumps", "tofile")


def install() -> None:
    """Make `icrl.runtime.sandbox.policy.attributes.read` know the special attributes."""
    SPECIAL.update(dict.fromkeys(FRAME_ATTRIBUTES, _refuse))
    SPECIAL.update(dict.fromkeys(_RAW_MEMORY_AND_FILES, _of_array))
    SPECIAL.update({"format": _format, "format_map": _format, "obj": _culprit, "register": _register})
    SPECIAL.update({"__mro__": _classes, "__bases__": _classes, "__slots__": _slots})
    SPECIAL.update({"__class__": lambda thing, _: kind_of(thing), "__dict__": lambda thing, _: own_attributes(thing)})
    SPECIAL.update({"__setattr__": _setter, "__delattr__": _setter})


def _refuse(thing: Any, name: str) -> Any:
    raise refused(name)


def _of_array(thing: Any, name: str) -> Any:
    kind = thing if isinstance(thing, type) else type(thing)
    if any(base.__module__.partition(".")[0] == "numpy" for base in type.__getattribute__(kind, "__mro__")):
        raise refused(name)
    return vet(getattr(thing, name), name)


def _format(thing: Any, name: str) -> Any:
    value = getattr(thing, name)
    by_mapping = name == "format_map"
    if type(value) is BuiltinFunctionType and isinstance(value.__self__, str):
        return partial(_format_map if by_mapping else guarded_format, value.__self__)
    if type(value) is MethodDescriptorType and value.__objclass__ is str:
        return _format_map if by_mapping else guarded_format
    raw = value.__func__ if type(value) is MethodType else value
    if raw is UserString.format or raw is UserString.format_map:
        raise refused(f"{name} of UserString")
    return vet(value, name)


def _format_map(template: str, mapping: Any) -> str:
    return Formatter().vformat(template, (), mapping)


def _culprit(thing: Any, name: str) -> Any:
    if isinstance(thing, (AttributeError, NameError)):
        raise refused("obj of an AttributeError")
    return vet(getattr(thing, name), name)


def _register(thing: Any, name: str) -> Any:
    if isinstance(thing, type) and isinstance(thing, ABCMeta):
        raise refused("register of an abstract class")
    return vet(getattr(thing, name), name)


def _classes(thing: Any, name: str) -> Any:
    if not (isinstance(thing, type) and is_own(thing)):
        raise refused(name)
    return classes_of(thing, name)


def _slots(thing: Any, name: str) -> Any:
    if not is_own(thing):
        raise refused(name)
    return getattr(thing, name)


def _setter(thing: Any, name: str) -> Callable[..., None]:
    raw = getattr(thing, name)
    if type(thing) is super:
        return lambda attribute, *value: raw(check_writable(raw.__self__, attribute), *value)
    if thing is object or (isinstance(thing, type) and is_own(thing)):
        return lambda target, attribute, *value: raw(target, check_writable(target, attribute), *value)
    raise refused(name)
