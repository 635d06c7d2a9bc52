"""How long this process has lived, its imports included."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["process_age_s"]

_IMPORTED = time.monotonic()
_START_FIELD = 19
"""Position of `starttime` behind the command's closing bracket in `/proc/self/stat` (field 22, see proc(5))."""


def process_age_s() -> float:
    """Return the seconds since the process started; without a `/proc`, since this module was imported.

    Example:
        >>> process_age_s() > 0
        True
    """
    try:
        # The command stands in brackets and may itself contain spaces and brackets.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
