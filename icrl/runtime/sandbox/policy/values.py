"""What may not come out of an attribute, whatever it was the attribute of.

The rules for names and modules should never let these through. This check is for the rule that somebody forgot.
"""

from __future__ import annotations

import builtins
import io
import string
import types
from typing import Any

from icrl.runtime.sandbox.policy.names import words
from icrl.runtime.sandbox.policy.refusal import RefusedAttribute

__all__ = ["SYSTEM_MODULES", "vet"]

SYSTEM_MODULES = frozenset(
    words(
        "_ctypes _frozen_importlib _frozen_importlib_external _imp _io _pickle _posixsubprocess _signal _socket "
        "_thread asyncio builtins code codeop ctypes gc importlib inspect io linecache marshal mmap "
        "multiprocessing os pathlib pickle pkgutil posix posixpath resource runpy shelve shutil signal site socket "
        "ssl subprocess sys tempfile threading tokenize traceback types urllib zipfile"
    )
)
"""Roots of modules whose functions reach the process, the machine or other code."""

_TAKEN = "__import__ breakpoint compile delattr dir eval exec getattr globals hasattr input locals open setattr vars"
_FORBIDDEN = frozenset(id(getattr(builtins, name)) for name in words(_TAKEN)) | {
    id(io.open_code),
    id(string.Formatter),
    id(type),
    *(id(kind) for kind in (types.CodeType, types.FunctionType, types.ModuleType, io.FileIO)),
}
_REACHING = frozenset({types.FrameType, types.CodeType, types.TracebackType, types.ModuleType})
_CALLABLE = frozenset({types.BuiltinFunctionType, types.FunctionType, type})
_SUSPECTS = _REACHING | _CALLABLE


def vet(value: Any, name: str) -> Any:
    """Return a value unless it leads out of the program's own world.

    Args:
        value: What an attribute gave.
        name: The attribute, for the message.

    Raises:
        RefusedAttribute: It is a module, a frame, code, or a function of the system.

    Example:
        >>> vet([1].append, "append")([2])
        >>> vet(open, "open")
        Traceback (most recent call last):
        icrl.runtime.sandbox.policy.refusal.RefusedAttribute: .open is not available here
    """
    kind = type(value)
    if kind in _SUSPECTS and (kind in _REACHING or id(value) in _FORBIDDEN or _of_the_system(value, kind)):
        raise RefusedAttribute(f".{name} is not available here")
    return value


def _of_the_system(value: Any, kind: type) -> bool:
    if kind is types.BuiltinFunctionType:
        owner = value.__self__
        return type(owner) is types.ModuleType and owner.__name__ in SYSTEM_MODULES - {"builtins"}
    if kind is types.FunctionType:
        return str(value.__globals__.get("__name__")).partition(".")[0] in SYSTEM_MODULES
    module = type.__getattribute__(value, "__dict__").get("__module__")
    return isinstance(module, str) and module.partition(".")[0] in SYSTEM_MODULES - {"builtins", "io", "_io", "types"}
