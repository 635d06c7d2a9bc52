"""The system call filter: an allow-list as a classic BPF program, built before anything is locked."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Mapping

from icrl.runtime.sandbox.kernel import prctl
from icrl.runtime.sandbox.syscalls import CONDITIONAL, FREE, Architecture

__all__ = ["build_filter", "has_filters", "install_filter"]

# linux/bpf_common.h, linux/filter.h
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# linux/seccomp.h
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_GET_SECCOMP, _SET_SECCOMP, _MODE_FILTER = 21, 22, 2

_WRITING = 0o3 | 0o100 | 0o1000 | 0o10000000 | 0o20000000  # access mode, O_CREAT, O_TRUNC, O_PATH, __O_TMPFILE
_WRITE, _EXEC, _ANONYMOUS = 2, 4, 0x20
_FCNTL = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: no owners, signals, leases, locks
_GET_NO_NEW_PRIVS = 39

_Step = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def build_filter(architecture: Architecture) -> bytes:
    """Return the filter as an array of `struct sock_filter`, for `install_filter`.

    A call is allowed, allowed for some arguments, or answered with EPERM. A call of another architecture, or of x32,
    kills the process.

    Example:
        >>> from icrl.runtime.sandbox.syscalls import ARCHITECTURES
        >>> len(build_filter(ARCHITECTURES["aarch64"])) % 8
        0
    """
    numbers = architecture.numbers
    steps = _entry(architecture)
    for name in CONDITIONAL:
        if name in numbers:
            block = _CONDITIONS[name]
            steps += [(_IF_EQUAL, 0, len(block), numbers[name]), *block]
    free = [numbers[name] for name in FREE if name in numbers]
    # The verdicts come last: refused, then allowed. Every comparison jumps over those after it and the refusal.
    steps += [(_IF_EQUAL, len(free) - place, 0, number) for place, number in enumerate(free)]
    steps += [_verdict(_ERRNO | errno.EPERM), _verdict(_ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _entry(architecture: Architecture) -> list[_Step]:
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, architecture.audit), _verdict(_KILL_PROCESS)]
    steps.append((_LOAD, 0, 0, _NUMBER))
    if architecture.foreign_bit is not None:
        steps += [(_IF_AT_LEAST, 0, 1, architecture.foreign_bit), _verdict(_KILL_PROCESS)]
    return steps


def _verdict(value: int) -> _Step:
    return (_RETURN, 0, 0, value)


def _argument(place: int, *, high: bool = False) -> _Step:
    return (_LOAD, 0, 0, 16 + 8 * place + 4 * high)  # both architectures are little-endian


def _refuse_bits(argument: int, bits: int) -> list[_Step]:
    return [
        _argument(argument),
        (_IF_ANY_BIT, 0, 1, bits),
        _verdict(_ERRNO | errno.EPERM),
        _verdict(_ALLOW),
    ]


def _only(argument: int, values: tuple[int, ...]) -> list[_Step]:
    tests = [(_IF_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [_argument(argument), *tests, _verdict(_ERRNO | errno.EPERM), _verdict(_ALLOW)]


def _only_zero(words: list[_Step]) -> list[_Step]:
    steps: list[_Step] = []
    for word in words:
        steps += [word, (_IF_EQUAL, 1, 0, 0), _verdict(_ERRNO | errno.EPERM)]
    return [*steps, _verdict(_ALLOW)]


# Code comes from files only: what is executable is mapped from one, and never writable.
_MAP = [
    _argument(2),
    (_IF_ANY_BIT, 0, 5, _EXEC),
    (_IF_ANY_BIT, 3, 0, _WRITE),
    _argument(3),
    (_IF_ANY_BIT, 1, 0, _ANONYMOUS),
    _verdict(_ALLOW),
    _verdict(_ERRNO | errno.EPERM),
    _verdict(_ALLOW),
]
_CONDITIONS: Mapping[str, list[_Step]] = {
    "open": _refuse_bits(1, _WRITING),
    "openat": _refuse_bits(2, _WRITING),
    "mmap": _MAP,
    "mprotect": _refuse_bits(2, _EXEC),
    "fcntl": _only(1, _FCNTL),
    "ioctl": [_verdict(_ERRNO | errno.ENOTTY)],
    "prctl": _only(0, (_GET_NO_NEW_PRIVS,)),
    # Its own limits, and to read them only.
    "prlimit64": _only_zero([_argument(0), _argument(2), _argument(2, high=True)]),
}


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def has_filters() -> bool:
    """Whether the kernel filters system calls.

    Example:
        >>> has_filters() in (True, False)
        True
    """
    try:
        prctl(_GET_SECCOMP)
    except OSError:
        return False
    return True


def install_filter(program: bytes) -> None:
    """Put a filter on this process, for good.

    Raises:
        OSError: The kernel has none, or the process may still gain privileges.
    """
    structure = _Program(len(program) // 8, program)
    prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(structure))
