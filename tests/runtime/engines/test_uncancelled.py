import asyncio

import pytest

from icrl.runtime.engines.uncancelled import uncancelled


async def cancelled_often(work, **options):
    task = asyncio.create_task(uncancelled(work, **options))
    for _ in range(4):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_work_ends_however_often_its_caller_is_cancelled():
    ended = []

    async def work():
        await asyncio.sleep(0.02)
        ended.append(True)
        raise OSError("which nobody hears")

    await cancelled_often(work(), patience_s=5)
    assert ended == [True]


async def test_what_does_not_end_is_cancelled_after_the_patience():
    hurried, ended = [], asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await cancelled_often(work(), patience_s=0.02, on_cancel=lambda: hurried.append(True))
    await asyncio.wait_for(ended.wait(), 1)
    assert hurried == [True]


async def test_results_and_errors_pass_through():
    async def fail():
        raise OSError("no")

    assert await uncancelled(asyncio.sleep(0, "done"), patience_s=1) == "done"
    with pytest.raises(OSError, match="no"):
        await uncancelled(fail(), patience_s=1)
