from __future__ import annotations

import asyncio
import contextvars
import sys
import threading

import pytest
from watched import until

from icrl.errors import ToolError
from icrl.runtime.tools.threads import Threads


async def test_functions_run_off_the_loop_and_share_threads():
    threads = Threads(name="t", limit=2)
    seen = [await threads.run(threading.get_ident) for _ in range(5)]
    assert threading.get_ident() not in seen
    assert len(set(seen)) <= 2
    await threads.aclose()


async def test_limit_bounds_what_runs_at_once():
    threads = Threads(name="t", limit=2)
    running, peak, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2, timeout=5)

    def work() -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        both.wait()
        with lock:
            running -= 1

    await asyncio.gather(*(threads.run(work) for _ in range(8)))
    assert peak == 2
    await threads.aclose()


async def test_abandoned_function_keeps_its_thread_visible_until_it_ends():
    threads = Threads(name="t", limit=1)
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        release.wait(5)
        ended.set()

    hanging = asyncio.create_task(threads.run(hang))
    await until(started.is_set)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hanging, 0.02)
    assert threads.busy == 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await threads.run(lambda: pytest.fail("a call that was given up must not run"))
    release.set()
    assert await threads.run(lambda: "next") == "next"
    assert ended.is_set()
    await threads.aclose()


async def test_closing_ends_idle_threads_and_does_not_wait_for_hung_ones():
    threads, release = Threads(name="closing", limit=3), threading.Event()
    hung = asyncio.create_task(threads.run(lambda: release.wait(5)))
    await threads.run(lambda: None)
    await threads.aclose()
    assert sum(thread.name == "closing" for thread in threading.enumerate()) <= 1
    release.set()
    await hung


async def test_exceptions_arrive_and_none_can_break_the_loop():
    threads = Threads(name="t", limit=1)

    def stop() -> None:
        raise StopIteration("early")

    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(stop)
    with pytest.raises(ToolError, match="SystemExit"):
        await threads.run(sys.exit)
    await threads.aclose()


async def test_context_variables_are_carried_over():
    variable = contextvars.ContextVar("variable", default="outside")
    variable.set("inside")
    threads = Threads(name="t", limit=1)
    assert await threads.run(variable.get) == "inside"
    await threads.aclose()


def test_result_for_a_closed_loop_is_dropped():
    threads, release, started = Threads(name="t", limit=1), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait(5)

    async def abandon() -> None:
        task = asyncio.create_task(threads.run(work))
        while not started.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(abandon())
    release.set()
    assert asyncio.run(threads.run(lambda: 1)) == 1
    asyncio.run(threads.aclose())
