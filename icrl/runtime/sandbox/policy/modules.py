"""Modules as programs see them: facades that hold nothing but what the rules allow."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

from icrl.runtime.sandbox.policy import symbolic
from icrl.runtime.sandbox.policy.facade import Facade
from icrl.runtime.sandbox.policy.refusal import RefusedAttribute, RefusedImport
from icrl.runtime.sandbox.policy.rules import Rule, rule_for, why_not
from icrl.runtime.sandbox.policy.values import vet

__all__ = ["facade", "guarded_import"]

_FACADES: dict[str, Facade] = {}


def facade(name: str) -> Facade:
    """Import a module and return what programs see of it.

    Raises:
        RefusedImport: No rule allows it; the message says what to do instead.
        ImportError: It is allowed, and not installed.

    Example:
        >>> facade("math").pi
        3.141592653589793
        >>> facade("statistics").sys
        Traceback (most recent call last):
        icrl.runtime.sandbox.policy.refusal.RefusedAttribute: statistics.sys is not available here
    """
    if name not in _FACADES:
        if rule_for(name) is None:
            raise RefusedImport(why_not(name))
        _load(name)
        _FACADES[name] = Facade(name, _resolve)
    return _FACADES[name]


def _load(name: str) -> None:
    root = name.partition(".")[0]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == root:
            raise ModuleNotFoundError(f"No module named {name!r}: it is not installed here", name=name) from None
        raise
    if root in ("mpmath", "sympy"):
        symbolic.guard_mpmath()
    if root == "sympy":
        symbolic.guard_sympy()


def _resolve(module: str, name: str) -> Any:
    rule = rule_for(module) or Rule()
    if name in rule.replaced:
        return rule.replaced[name]
    if name == "__all__":
        return _public_names(module, rule)
    real = importlib.import_module(module)
    found = getattr(real, name, None)
    # What a package itself has under the name of one of its modules counts: `sympy.simplify` is a function.
    if rule_for(f"{module}.{name}") is not None and (found is None or isinstance(found, ModuleType)):
        return facade(f"{module}.{name}")
    value = getattr(real, name)
    hidden = name.startswith("_") and name != "__version__"
    if hidden or name in rule.denied or isinstance(value, ModuleType):
        raise RefusedAttribute(f"{module}.{name} is not available here")
    if rule.only is None:
        return vet(value, name)
    if name in rule.only:
        return value
    raise RefusedAttribute(f"{module}.{name} is not available here; {module} has {', '.join(_visible(rule)) or 'none'}")


def _visible(rule: Rule) -> list[str]:
    return sorted((rule.only or frozenset()) | set(rule.replaced))


def _public_names(module: str, rule: Rule) -> list[str]:
    real = importlib.import_module(module)
    names = _visible(rule) if rule.only is not None else getattr(real, "__all__", dir(real))
    visible = []
    for name in names:
        with suppress(AttributeError):
            if not name.startswith("_"):
                getattr(facade(module), name)
                visible.append(name)
    return visible


def guarded_import(
    name: str,
    globals: Mapping[str, Any] | None = None,  # noqa: A002 - the signature of __import__
    locals: Mapping[str, Any] | None = None,  # noqa: A002
    fromlist: tuple[str, ...] | list[str] | None = (),
    level: int = 0,
) -> Facade | None:
    """Stand in for `__import__`.

    The names of a `from` import are looked up here: the interpreter's own lookup would fall back to `sys.modules`.

    Raises:
        RefusedImport: The module or a name in it may not be imported.
        ImportError: It is not there.
    """
    if type(fromlist) is list:
        # A library's C code imports for itself in a frame of the program. It ignores what this returns and takes the
        # module from sys.modules; the import statement passes a tuple or None, so that no program gets here.
        importlib.import_module(name)
        return None
    module = facade(name)
    for wanted in fromlist or ():
        if wanted != "*":
            _import_from(module, wanted)
    return module if fromlist else facade(name.partition(".")[0])


def _import_from(module: Facade, wanted: str) -> None:
    try:
        getattr(module, wanted)
    except RefusedAttribute as error:
        raise RefusedImport(str(error)) from None
    except AttributeError:
        raise ImportError(f"cannot import name {wanted!r} from {module.__name__!r}") from None
