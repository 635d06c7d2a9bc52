"""A circuit breaker: a provider that keeps failing is left alone for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from icrl.errors import ConfigError, ToolError, ToolUnavailable
from icrl.runtime.tools.web.errors import Unavailable

__all__ = ["Breaker"]

MAX_PAUSE_S = 300.0


class Breaker:
    """Counts failures in a row, and refuses calls at once while their subject is believed to be down.

    *closed*: calls pass. After `failures` calls in a row that ended in `ToolUnavailable`, or that were cut off at
    their deadline, it is *open* for `pause_s`, or for as long as the other side asked for, at most 300 s: calls are
    refused. Then it is *half open*: one call passes while others are still refused, and its outcome closes or opens.
    An error that is an answer, such as `BadQuery` or `Auth`, counts as success.

    Args:
        name: What is behind it, for messages.
        failures: Failures in a row that open it.
        pause_s: Seconds that it stays open.
        clock: Seconds that only grow.

    Raises:
        ConfigError: `failures` or `pause_s` is not positive.

    Example:
        >>> breaker = Breaker("serper", failures=1, pause_s=30.0)
        >>> with breaker.call(deadline=time.monotonic() + 9.0):
        ...     raise Unavailable("serper cannot be reached")
        Traceback (most recent call last):
        icrl.runtime.tools.web.errors.Unavailable: serper cannot be reached
        >>> breaker.state
        'open'
    """

    def __init__(
        self, name: str, *, failures: int = 5, pause_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if failures < 1:
            raise ConfigError(f"failures: must be >= 1, not {failures!r}")
        if not pause_s > 0:
            raise ConfigError(f"pause_s: must be > 0 seconds, not {pause_s!r}")
        self._name = name
        self._limit = failures
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._is_probing = False

    @property
    def state(self) -> str:
        """`closed`, `open` or `half open`."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half open"

    @contextmanager
    def call(self, *, deadline: float) -> Iterator[None]:
        """Let one call pass and learn from how it ends.

        Args:
            deadline: Time of `clock` at which the call is cut off; a cancellation after it counts as a failure, one
                before it as nothing.

        Raises:
            Unavailable: The breaker is open.
        """
        is_probe = self._enter()
        try:
            yield
        except ToolUnavailable as error:
            self._fail(error.retry_after_s or 0.0)
            raise
        except ToolError:
            self._succeed()
            raise
        except asyncio.CancelledError:
            if self._clock() >= deadline:
                self._fail(0.0)
            raise
        else:
            self._succeed()
        finally:
            self._is_probing = self._is_probing and not is_probe

    def _enter(self) -> bool:
        """Return whether this call is the one that tries again."""
        if self._open_until is None:
            return False
        left_s = self._open_until - self._clock()
        if left_s > 0 or self._is_probing:
            wait_s = max(left_s, 1.0)
            raise Unavailable(
                f"{self._name} failed {self._failures} times in a row and is left alone for {wait_s:.0f} s",
                retry_after_s=wait_s,
            )
        self._is_probing = True
        return True

    def _fail(self, retry_after_s: float) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._open_until = self._clock() + min(max(self._pause_s, retry_after_s), MAX_PAUSE_S)

    def _succeed(self) -> None:
        self._failures, self._open_until = 0, None
