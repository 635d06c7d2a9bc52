"""A bound on how many requests a caller may make in a minute."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Rates"]

MAX_CALLERS = 10_000


class Rates:
    """One token bucket a caller: a minute's requests may come at once, then as many as the minute has room for.

    A caller is remembered as a single number, the time at which the bucket is full again (the generic cell rate
    algorithm). Beyond `max_callers` the one that was heard of longest ago is forgotten, so that the table cannot grow.

    Args:
        per_minute: Requests in a minute; no bound if not given.
        max_callers: How many are remembered.
        clock: Tells the time in seconds.

    Example:
        >>> rates = Rates(2, clock=lambda: 0.0)
        >>> [rates.take("a"), rates.take("a"), rates.take("a"), rates.take("b")]
        [0.0, 0.0, 30.0, 0.0]
    """

    def __init__(
        self, per_minute: float | None, *, max_callers: int = MAX_CALLERS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = 0.0 if per_minute is None else 60.0 / per_minute
        self._burst_s = max(0.0, 60.0 - self._interval_s)
        self._max_callers = max_callers
        self._clock = clock
        self._full: dict[str, float] = {}

    def __len__(self) -> int:
        """How many callers are remembered."""
        return len(self._full)

    def take(self, caller: str) -> float:
        """Count one request, or return the seconds until there is room for one, uncounted."""
        if not self._interval_s:
            return 0.0
        now = self._clock()
        full = max(self._full.pop(caller, now), now)
        wait_s = max(0.0, full - now - self._burst_s)
        self._full[caller] = full if wait_s else full + self._interval_s
        if len(self._full) > self._max_callers:
            del self._full[next(iter(self._full))]
        return wait_s
