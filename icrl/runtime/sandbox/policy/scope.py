"""The built-ins that programs find, guards included."""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from icrl.runtime.sandbox.language import Refused
from icrl.runtime.sandbox.policy import attributes
from icrl.runtime.sandbox.policy.kinds import Kind, attribute_hook, build_class, metaclass
from icrl.runtime.sandbox.policy.modules import guarded_import
from icrl.runtime.sandbox.policy.names import GUARDS, is_dunder, words
from icrl.runtime.sandbox.policy.streams import Reader

__all__ = ["caller", "fresh_builtins", "hidden", "visible"]

_PLAIN = words(
    "Ellipsis False None NotImplemented True abs all any ascii bin bool bytearray bytes callable chr "
    "classmethod complex dict divmod enumerate filter float format frozenset hash hex id input int isinstance "
    "issubclass iter len list map max memoryview min next object oct ord pow print property range repr "
    "reversed round set slice sorted staticmethod str sum super tuple zip"
)
_EXCEPTIONS = {name: thing for name, thing in vars(builtins).items() if isinstance(thing, type)}
_ABSENT = object()

_REFUSED = {
    "breakpoint": "there is no debugger here; use print",
    "compile": "use exec, eval or a function",
    "help": "there is no documentation here",
}


def fresh_builtins() -> dict[str, Any]:
    """Return the built-ins of one namespace; a program that changed them would change its own only."""
    return dict(_BUILTINS)


def hidden(name: str) -> bool:
    """Return whether a variable belongs to the policy or to Python, and not to the program."""
    return name in GUARDS or (is_dunder(name) and name != "__name__")


def visible(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a namespace that are the program's."""
    return {name: value for name, value in variables.items() if not hidden(name)}


def _guarded_getattr(thing: Any, name: str, default: Any = _ABSENT, /) -> Any:
    try:
        return attributes.read(thing, attributes.check_readable(name))
    except AttributeError:
        if default is _ABSENT:
            raise
        return default


def _guarded_hasattr(thing: Any, name: str, /) -> bool:
    missing = object()
    return _guarded_getattr(thing, name, missing) is not missing


def _guarded_setattr(thing: Any, name: str, value: Any, /) -> None:
    setattr(thing, attributes.check_writable(thing, name), value)


def _guarded_delattr(thing: Any, name: str, /) -> None:
    delattr(thing, attributes.check_writable(thing, name))


def caller() -> types.FrameType:
    """Return the frame of the program that called the built-in which calls this.

    Raises:
        Refused: A library called it, whose variables are not the program's.
    """
    frame = sys._getframe(2)
    if frame.f_builtins.get("_getattr_") is not attributes.read:
        raise Refused("eval, exec, globals, locals, vars and dir have to be called by the program itself")
    return frame


def _globals() -> Mapping[str, Any]:
    return types.MappingProxyType(visible(caller().f_globals))


def _locals() -> dict[str, Any]:
    return visible(caller().f_locals)


def _vars(thing: Any = _ABSENT, /) -> dict[str, Any]:
    return visible(caller().f_locals) if thing is _ABSENT else attributes.own_attributes(thing)


def _dir(thing: Any = _ABSENT, /) -> list[str]:
    names = visible(caller().f_locals) if thing is _ABSENT else dir(thing)
    return sorted(name for name in names if not name.startswith("_"))


def _open(file: Any, mode: str = "r", *options: Any, **more: Any) -> Reader:
    if type(file) is int and file == 0 and mode in ("r", "rb"):
        return Reader(binary=mode == "rb")
    raise Refused("open is not available here: there are no files; keep data in the program or print it")


def _exit(code: Any = None) -> None:
    raise SystemExit(code)


def _refuse(name: str, reason: str) -> Callable[..., None]:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise Refused(f"{name} is not available here: {reason}")

    refuse.__name__ = name
    return refuse


_BUILTINS: dict[str, Any] = (
    {name: getattr(builtins, name) for name in _PLAIN}
    | {name: thing for name, thing in _EXCEPTIONS.items() if issubclass(thing, BaseException)}
    | {name: _refuse(name, reason) for name, reason in _REFUSED.items()}
    | {"type": Kind, "getattr": _guarded_getattr, "hasattr": _guarded_hasattr, "setattr": _guarded_setattr}
    | {"delattr": _guarded_delattr, "globals": _globals, "locals": _locals, "vars": _vars, "dir": _dir}
    | {"open": _open, "exit": _exit, "quit": _exit, "__import__": guarded_import, "__build_class__": build_class}
    | {"_getattr_": attributes.read, "_write_": attributes.write, "_writeprivate_": attributes.write_private}
    | {"_inplaceattr_": attributes.inplace, "_metaclass_": metaclass, "_attribute_hook_": attribute_hook}
    | {"__debug__": True, "__name__": "builtins"}
)
for _guard in (_guarded_getattr, _guarded_hasattr, _guarded_setattr, _guarded_delattr, _globals, _locals, _vars, _dir):
    _guard.__name__ = _guard.__qualname__ = _guard.__name__.removeprefix("_guarded").lstrip("_")
