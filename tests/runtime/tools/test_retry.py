from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from icrl.errors import ToolError, ToolUnavailable
from icrl.runtime.tools import retry as module
from icrl.runtime.tools.retry import retrying


class Attempts:
    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(time.monotonic())
        if self.failures:
            raise self.failures.pop(0)
        return "done"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.002)


async def retry(attempt: Attempts, *, retries: int = 3, within_s: float = 5.0, on_retry: Callable[[], None] = int):
    return await retrying(attempt, retries=retries, deadline=time.monotonic() + within_s, on_retry=on_retry)


async def test_what_was_unavailable_is_tried_again():
    heard: list[int] = []
    attempts = Attempts(ToolUnavailable("a"), ToolUnavailable("b"))
    assert await retry(attempts, on_retry=lambda: heard.append(1)) == "done"
    assert (len(attempts.times), len(heard)) == (3, 2)


async def test_the_last_error_is_raised_as_it_is():
    attempts = Attempts(*(ToolUnavailable(str(number)) for number in range(5)))
    with pytest.raises(ToolUnavailable, match="2"):
        await retry(attempts, retries=2)
    assert len(attempts.times) == 3


@pytest.mark.parametrize("error", [ToolError("no"), ValueError("no"), TimeoutError("no"), asyncio.CancelledError()])
async def test_nothing_else_is_tried_again(error):
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        await retry(attempts)
    assert len(attempts.times) == 1


async def test_what_the_other_side_asks_for_is_waited():
    attempts = Attempts(ToolUnavailable("later", retry_after_s=0.05))
    assert await retry(attempts) == "done"
    assert attempts.times[1] - attempts.times[0] >= 0.05


@pytest.mark.parametrize("asked_s", [float("nan"), -3.0, None])
async def test_nonsense_of_the_other_side_is_no_wait(asked_s):
    async with asyncio.timeout(2):
        assert await retry(Attempts(ToolUnavailable("?", retry_after_s=asked_s))) == "done"


@pytest.mark.parametrize("asked_s", [60.0, float("inf")])
async def test_a_wait_beyond_the_deadline_is_not_begun(asked_s):
    started = time.monotonic()
    attempts = Attempts(ToolUnavailable("tomorrow", retry_after_s=asked_s))
    with pytest.raises(ToolUnavailable, match="tomorrow"):
        await retry(attempts, within_s=10.0)
    assert time.monotonic() - started < 5.0
    assert len(attempts.times) == 1


async def test_cancelling_ends_the_wait():
    running = asyncio.create_task(retry(Attempts(ToolUnavailable("x", retry_after_s=60.0)), within_s=600.0))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
