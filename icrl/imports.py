"""Importing what may not be there: extras, and what a user names as `module:attribute`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from icrl.errors import ConfigError, MissingExtraError, nearest

__all__ = ["import_attribute", "require"]


def require(*packages: str, extra: str) -> None:
    """Check that optional packages are installed, without importing them.

    Raises:
        MissingExtraError: One is not; the message has the pip command.

    Example:
        >>> require("no_such_package", extra="search")
        Traceback (most recent call last):
        icrl.errors.MissingExtraError: no_such_package is not installed; run: pip install 'icrl[search]'
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra=extra)


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
    except (ImportError, TypeError) as error:  # TypeError: a relative name
        raise ConfigError(f"{setting}: cannot import {module_name!r}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigError(f"{setting}: {module_name} has no {attribute!r}.{nearest(attribute, vars(module))}")
    return found
