"""Making forks cheap: the fewer pages a process has, the less there is to copy.

In a virtual machine, a fork cost 0.09 microseconds for every page of 4 KiB. With numpy, scipy and sympy there are
25,000 of them; in pages of 2 MiB the same memory forks in a third of the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

__all__ = ["collapse_memory"]

_COLLAPSE = 25  # MADV_COLLAPSE
_HUGE_BYTES = 2 << 20


def collapse_memory() -> int:
    """Put the plain memory of this process into large pages where the kernel can, and return how many it made.

    Example:
        >>> collapse_memory() >= 0
        True
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    pages = [address for start, end in _plain_memory() for address in _huge_pages(start, end)]
    return sum(libc.madvise(address, _HUGE_BYTES, _COLLAPSE) == 0 for address in pages)


def _plain_memory() -> Iterator[tuple[int, int]]:
    with open("/proc/self/maps", encoding="utf-8") as file:
        lines = file.read().splitlines()
    for line in lines:
        area, permissions, _, _, _, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and name in ([], ["[heap]"]):
            start, _, end = area.partition("-")
            yield int(start, 16), int(end, 16)


def _huge_pages(start: int, end: int) -> range:
    first = -(-start // _HUGE_BYTES) * _HUGE_BYTES
    return range(first, end - _HUGE_BYTES + 1, _HUGE_BYTES)
