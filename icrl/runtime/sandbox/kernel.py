"""System calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os

__all__ = ["call", "prctl"]

# The C library that is loaded already: looking for it by name would start other programs.
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call.

    Args:
        number: As in the architecture's table.
        arguments: Integers, or bytes where it takes a pointer to a structure.

    Raises:
        OSError: It failed.
    """
    converted = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    return _checked(int(_LIBC.syscall(ctypes.c_long(number), *converted)))


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """Change or read a property of this process.

    Raises:
        OSError: The kernel refused.
    """
    return _checked(int(_LIBC.prctl(option, first, second, 0, 0)))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
