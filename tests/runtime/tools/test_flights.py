from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl.errors import ToolError
from icrl.runtime.tools.flights import Flights, Late
from icrl.runtime.tools.keys import CallKey


def key(text: str = "a") -> CallKey:
    return CallKey("search", "", text)


class Search:
    """Answers with the text it was started for, once it is let."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self, text: str = "a") -> str:
        self.runs[text] += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return f"answer to {text}"


def join(flights: Flights, search: Search, text: str = "a", timeout_s: float = 5.0) -> asyncio.Task[str]:
    return asyncio.create_task(flights.join(key(text), partial(search, text), timeout_s=timeout_s))


async def test_equal_calls_share_one_run_and_others_do_not():
    flights, search = Flights(grace_s=1.0), Search()
    tasks = [join(flights, search, text) for text in "aabab"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert flights.has(key("a"))
    search.go.set()
    assert await asyncio.gather(*tasks) == [f"answer to {text}" for text in "aabab"]
    assert search.runs == {"a": 1, "b": 1}
    assert not flights.has(key("a"))


async def test_a_finished_run_is_not_shared():
    flights, search = Flights(grace_s=1.0), Search()
    search.go.set()
    await join(flights, search)
    await join(flights, search)
    assert search.runs["a"] == 2


async def test_a_caller_that_leaves_does_not_disturb_the_others():
    flights, search = Flights(grace_s=1.0), Search()
    first, second = join(flights, search), join(flights, search)
    hurried = join(flights, search, timeout_s=0.01)
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(Late):
        await hurried
    assert search.cancelled == 0
    search.go.set()
    assert await second == "answer to a"


async def test_the_last_caller_takes_the_run_along():
    flights, search = Flights(grace_s=1.0), Search()
    tasks = [join(flights, search) for _ in range(3)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert search.cancelled == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not flights.ending


async def test_who_comes_after_a_cancelled_run_gets_a_new_one():
    flights, search = Flights(grace_s=0.02), Search()
    release = asyncio.Event()

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()
        return "too late"

    with pytest.raises(Late):
        await flights.join(key(), stubborn, timeout_s=0.01)
    assert len(flights.ending) == 1
    search.go.set()
    assert await join(flights, search) == "answer to a"
    release.set()
    await asyncio.sleep(0.01)
    assert not flights.ending


async def test_everybody_hears_of_a_failure():
    async def fail() -> str:
        await asyncio.sleep(0)
        raise ToolError("no")

    flights = Flights(grace_s=1.0)
    outcomes = await asyncio.gather(
        *(flights.join(key(), fail, timeout_s=5.0) for _ in range(3)), return_exceptions=True
    )
    assert [str(outcome) for outcome in outcomes] == ["no"] * 3


def test_a_run_of_a_closed_loop_is_not_waited_for():
    flights = Flights(grace_s=1.0)
    loop = asyncio.new_event_loop()
    hung = loop.create_task(flights.join(key(), asyncio.Event().wait, timeout_s=60.0))  # type: ignore[arg-type]
    loop.run_until_complete(asyncio.sleep(0.001))
    lost = asyncio.all_tasks(loop)

    async def again() -> str:
        search = Search()
        search.go.set()
        return await flights.join(key(), search, timeout_s=5.0)

    assert asyncio.run(again()) == "answer to a"
    for task in lost:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*lost, return_exceptions=True))
    assert hung.done()
    loop.close()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=25))
def test_nobody_gets_the_answer_to_another_question(calls):
    async def play() -> None:
        flights = Flights(grace_s=1.0)
        running: Counter[str] = Counter()

        async def answer(text: str) -> str:
            running[text] += 1
            assert running[text] == 1
            try:
                for _ in range(3):
                    await asyncio.sleep(0)
            finally:
                running[text] -= 1
            return text

        tasks = []
        for text, turns, leaves in calls:
            task = asyncio.create_task(flights.join(key(text), partial(answer, text), timeout_s=60.0))
            tasks.append((text, leaves, task))
            for _ in range(turns):
                await asyncio.sleep(0)
            if leaves:
                task.cancel()
        await asyncio.gather(*(task for *_, task in tasks), return_exceptions=True)
        for text, leaves, task in tasks:
            if not leaves or not task.cancelled():
                assert task.result() == text
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(play())
