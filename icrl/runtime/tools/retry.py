"""Trying again what is unavailable, while there is time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from icrl.errors import ToolUnavailable

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["retrying"]

FIRST_WAIT_S = 0.5
"""Upper bound of the first wait; it doubles with every further one."""
LONGEST_WAIT_S = 16.0


async def retrying(
    attempt: Callable[[], Awaitable[str]], *, retries: int, deadline: float, on_retry: Callable[[], None]
) -> str:
    """Await `attempt()`, and again after a `ToolUnavailable`.

    The waits have full jitter (uniform between 0 and a bound that doubles), on top of what the error's
    `retry_after_s` asks for. A wait that would end after the deadline is not begun.

    Args:
        attempt: Makes one attempt.
        retries: How many further attempts.
        deadline: Monotonic time after which none is begun.
        on_retry: Called before each wait.

    Raises:
        ToolUnavailable: That of the last attempt.

    Example:
        >>> import asyncio
        >>> failures = [ToolUnavailable("one moment", retry_after_s=0.01)]
        >>> async def attempt():
        ...     if failures:
        ...         raise failures.pop()
        ...     return "at last"
        >>> asyncio.run(retrying(attempt, retries=1, deadline=time.monotonic() + 5.0, on_retry=lambda: None))
        'at last'
    """
    # Tenacity takes longer to import than the rest of the runtime's tools together.
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, stop_before_delay

    retries_ = AsyncRetrying(
        stop=stop_after_attempt(retries + 1) | stop_before_delay(max(0.0, deadline - time.monotonic())),
        wait=_wait_s,
        retry=retry_if_exception_type(ToolUnavailable),
        before_sleep=lambda _: on_retry(),
        reraise=True,
    )
    return await retries_(attempt)


def _wait_s(state: RetryCallState) -> float:
    from tenacity import wait_random_exponential

    jitter_s = wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)(state)
    error = None if state.outcome is None else state.outcome.exception()
    asked_s = error.retry_after_s if isinstance(error, ToolUnavailable) else None
    return jitter_s + max(0.0, asked_s or 0.0)
