"""Directories: where a zygote finds modules, and what its children may read."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

__all__ = ["module_paths", "read_roots"]

_PACKAGES = ("site-packages", "dist-packages")


def read_roots(paths: Sequence[str] | None = None) -> list[str]:
    """Return the directories of the standard library and of installed packages.

    Nothing else on the path is among them: not the working directory, not the project that runs the sandbox, also
    where an environment lies in it.

    Args:
        paths: The module path; `sys.path` if not given.

    Example:
        >>> read_roots(["", "/srv/project", "/srv/project/venv/lib/python3.11/site-packages"])[-1]
        '/srv/project/venv/lib/python3.11/site-packages'
    """
    # Of the interpreter, not of an environment made from it: that directory has no library, and lies in a project.
    base = {"base": sys.base_prefix, "installed_base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    library = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    installed = [path for path in (sys.path if paths is None else paths) if Path(path).name in _PACKAGES]
    dynamic = [path for path in sys.path if Path(path).name == "lib-dynload"]
    return list(dict.fromkeys([*library, *dynamic, *installed]))


def module_paths() -> list[str]:
    """Return where a zygote looks for modules: what children may read, and the directory of this package."""
    own = str(Path(__file__).parents[3])
    archives = [path for path in sys.path if path.endswith(".zip")]
    return list(dict.fromkeys([*archives, *read_roots(), own]))
