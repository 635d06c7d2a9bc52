"""Objects of the user's own code, named on the command line or in a file as `module:name`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from icrl.errors import ConfigError, nearest

__all__ = ["load_named"]


def load_named(spec: str, *, setting: str) -> Any:
    """Import what `module:name` names; modules of the working directory are found.

    Args:
        spec: Module and name.
        setting: Where it was written, for messages.

    Raises:
        ConfigError: There is no such module or name.

    Example:
        >>> load_named("math:sqrrt", setting="reward")
        Traceback (most recent call last):
        icrl.errors.ConfigError: reward: math has no 'sqrrt'. Did you mean 'sqrt'?
    """
    module_name, colon, name = spec.partition(":")
    if not (all(map(str.isidentifier, module_name.split("."))) and colon and name):
        raise ConfigError(f"{setting}: write module:name, not {spec!r}")
    if "" not in sys.path:  # a console script, unlike `python -m`, does not look into the working directory
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{setting}: cannot import {module_name!r}: {error}") from error
    if not hasattr(module, name):
        raise ConfigError(f"{setting}: {module_name} has no {name!r}.{nearest(name, vars(module))}")
    return getattr(module, name)
