"""Python's garbage collector, in processes that hold many objects and make few cycles."""

from __future__ import annotations

import gc

__all__ = ["relax_collector"]

COLLECT_AFTER = 10_000, 20, 20
"""Thresholds of the three generations."""


def relax_collector() -> None:
    """Let the garbage collector of this process look for cycles less often.

    A turn or a stream makes no cycles, but a thousand of them hold many objects; with Python's own thresholds, looking
    through these takes a tenth of what a turn costs, and a quarter of what an event of a stream does. It is for
    programs, such as `icrl train` and `icrl serve`; a library leaves the collector alone.
    """
    gc.set_threshold(*COLLECT_AFTER)
