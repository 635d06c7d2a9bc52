from __future__ import annotations

import asyncio
import gc

import pytest

from icrl.runtime.tools.patience import patience


async def test_a_task_that_is_done_ends_the_wait():
    task = asyncio.ensure_future(asyncio.sleep(0, "done"))
    await patience(task, 60.0)
    assert task.result() == "done"


async def test_a_task_that_was_done_before_is_not_waited_for():
    task = asyncio.ensure_future(asyncio.sleep(0))
    await task
    async with asyncio.timeout(5):
        await patience(task, 60.0)


@pytest.mark.parametrize("timeout_s", [0.005, 0.0, -1.0])
async def test_time_ends_the_wait_and_leaves_the_task_alone(timeout_s):
    task = asyncio.ensure_future(asyncio.sleep(60))
    await patience(task, timeout_s)
    assert not task.done()
    assert not task.cancelling()
    task.cancel()


async def test_cancelling_the_wait_leaves_the_task_alone():
    task = asyncio.ensure_future(asyncio.sleep(60))
    waiting = asyncio.create_task(patience(task, 60.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not task.cancelling()
    task.cancel()


async def test_a_failure_is_left_to_whoever_looks():
    async def fail() -> None:
        raise ValueError("no")

    task = asyncio.ensure_future(fail())
    await patience(task, 5.0)
    assert isinstance(task.exception(), ValueError)
    gc.collect()
