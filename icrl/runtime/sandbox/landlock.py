"""The file system as a locked child sees it: a few directories, to read."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from icrl.runtime.sandbox.kernel import call
from icrl.runtime.sandbox.syscalls import Architecture

__all__ = ["build_ruleset", "library_directory", "restrict", "supported"]

# linux/landlock.h
_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# How many of the rights to files exist in a version of the interface: refer, truncate and ioctl came later.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_SINCE, _SCOPES_SINCE = 4, 6
_BIND_TCP_CONNECT_TCP = 0b11
_ABSTRACT_UNIX_SOCKET_AND_SIGNAL = 0b11


def library_directory() -> list[str]:
    """Return where the C library lies: installed packages that are imported later look there for what they need.

    Example:
        >>> all(os.path.isdir(directory) for directory in library_directory())
        True
    """
    with open("/proc/self/maps", encoding="utf-8") as file:
        mapped = {line.split(maxsplit=5)[5].rstrip("\n") for line in file if "/" in line}
    names = ("libc.so", "libc-", "ld-musl")
    return sorted({os.path.dirname(path) for path in mapped if os.path.basename(path).startswith(names)})


def supported(architecture: Architecture) -> int:
    """Return the version of Landlock that the kernel has; 0 for none.

    Example:
        >>> from icrl.runtime.sandbox.syscalls import current
        >>> supported(current()) >= 0
        True
    """
    try:
        return call(architecture.numbers["landlock_create_ruleset"], None, 0, _CREATE_VERSION)
    except OSError:
        return 0


def build_ruleset(architecture: Architecture, roots: Iterable[str], version: int) -> int:
    """Return the descriptor of a ruleset: reading beneath the roots, and nothing else that Landlock knows of.

    Args:
        architecture: Of this machine.
        roots: Directories; those that do not exist are left out.
        version: What `supported` returned.

    Raises:
        OSError: The kernel refused.
    """
    attributes = (
        (1 << _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]) - 1,
        _BIND_TCP_CONNECT_TCP if version >= _NET_SINCE else 0,
        _ABSTRACT_UNIX_SOCKET_AND_SIGNAL if version >= _SCOPES_SINCE else 0,
    )
    # A kernel knows as many of these fields as its version says; the others have to be absent or zero.
    packed = struct.pack("QQQ", *attributes)
    ruleset = call(architecture.numbers["landlock_create_ruleset"], packed, len(packed), 0)
    for root in roots:
        if os.path.isdir(root):
            _allow_reading(architecture, ruleset, root)
    return ruleset


def _allow_reading(architecture: Architecture, ruleset: int, root: str) -> None:
    directory = os.open(root, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, directory)
        call(architecture.numbers["landlock_add_rule"], ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(directory)


def restrict(architecture: Architecture, ruleset: int) -> None:
    """Put a ruleset on this process, for good.

    Raises:
        OSError: The kernel has none, or the process may still gain privileges.
    """
    call(architecture.numbers["landlock_restrict_self"], ruleset, 0)
