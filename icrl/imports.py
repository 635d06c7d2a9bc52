"""Importing what a user names as `module:attribute`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from icrl.errors import ConfigError, nearest

__all__ = ["import_attribute"]


def import_attribute(spec: str, *, setting: str) -> Any:
    """Import an attribute of a module; modules of the working directory are found.

    Args:
        spec: `module:attribute`.
        setting: Name of the setting, for messages.

    Raises:
        ConfigError: There is no such module or attribute.

    Example:
        >>> import_attribute("math:pie", setting="reward")
        Traceback (most recent call last):
        icrl.errors.ConfigError: reward: math has no 'pie'. Did you mean 'pi'?
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f"{setting}: write module:name, not {spec!r}")
    if "" not in sys.path:  # a console script, unlike `python -m`, does not look into the working directory
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{setting}: cannot import {module_name!r}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigError(f"{setting}: {module_name} has no {attribute!r}.{nearest(attribute, vars(module))}")
    return found
