from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.errors import ToolBusy
from icrl.runtime.tools.rate import Rate


async def starts(rate: Rate, count: int, timeout_s: float = 5.0) -> list[float]:
    times: list[float] = []

    async def visit() -> None:
        await rate.turn(timeout_s)
        times.append(time.monotonic())

    await asyncio.gather(*(visit() for _ in range(count)), return_exceptions=True)
    return times


@settings(max_examples=10)
@given(st.integers(1, 8), st.sampled_from([100.0, 250.0, 1000.0]))
def test_no_stretch_of_turns_is_shorter_than_the_rate_allows(count, calls_per_s):
    times = asyncio.run(starts(Rate(calls_per_s=calls_per_s, max_queue=100), count))
    assert len(times) == count
    for first in range(count):
        for last in range(first + 1, count):
            assert times[last] - times[first] >= (last - first) / calls_per_s * 0.99 - 1e-3


async def test_the_first_turn_and_one_after_a_pause_are_at_once():
    rate = Rate(calls_per_s=0.001, max_queue=1)
    started = time.monotonic()
    await rate.turn(1.0)
    assert time.monotonic() - started < 1.0


async def test_what_cannot_have_a_turn_in_time_is_refused_at_once():
    rate = Rate(calls_per_s=0.01, max_queue=100)
    await rate.turn(1.0)
    started = time.monotonic()
    with pytest.raises(ToolBusy, match="no turn within 50 s"):
        await rate.turn(50.0)
    assert time.monotonic() - started < 1.0


async def test_a_long_queue_counts_as_time():
    rate = Rate(calls_per_s=10.0, max_queue=100)
    waiting = [asyncio.create_task(rate.turn(60.0)) for _ in range(20)]
    await asyncio.sleep(0)
    with pytest.raises(ToolBusy):
        await rate.turn(1.0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_whoever_gives_up_costs_the_others_nothing():
    rate = Rate(calls_per_s=20.0, max_queue=1000)
    await rate.turn(1.0)
    quitters = [asyncio.create_task(rate.turn(600.0)) for _ in range(500)]
    await asyncio.sleep(0)
    last = asyncio.create_task(rate.turn(600.0))
    await asyncio.sleep(0)
    for task in quitters:
        task.cancel()
    async with asyncio.timeout(5):
        await last
    await asyncio.gather(*quitters, return_exceptions=True)


async def test_the_queue_is_bounded():
    rate = Rate(calls_per_s=5.0, max_queue=1)
    await rate.turn(1.0)
    waiting = [asyncio.create_task(rate.turn(60.0)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ToolBusy, match="1 calls wait already"):
        await rate.turn(60.0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_turn_that_moved_out_of_reach_while_waiting_times_out():
    rate = Rate(calls_per_s=10.0, max_queue=10)
    await rate.turn(1.0)
    first, second = (asyncio.create_task(rate.turn(0.15)) for _ in range(2))
    await first
    with pytest.raises(TimeoutError):
        await second


def test_a_rate_serves_two_event_loops():
    rate = Rate(calls_per_s=500.0, max_queue=10)
    for _ in range(2):
        assert len(asyncio.run(starts(rate, 4))) == 4
