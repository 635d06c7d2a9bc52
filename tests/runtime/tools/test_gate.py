from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ToolBusy
from icrl.runtime.tools.gate import Gate


async def test_slots_go_to_whoever_waited_longest():
    gate, order = Gate(slots=1, max_queue=8), []
    assert gate.try_enter()

    async def visit(number: int) -> None:
        await gate.enter(5.0)
        order.append(number)
        gate.leave()

    visits = [asyncio.create_task(visit(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert not gate.try_enter()
    gate.leave()
    await asyncio.gather(*visits)
    assert order == list(range(5))
    assert gate.try_enter()


async def test_full_queue_refuses_at_once():
    gate = Gate(slots=1, max_queue=1)
    gate.try_enter()
    waiting = asyncio.create_task(gate.enter(5.0))
    await asyncio.sleep(0)
    with pytest.raises(ToolBusy, match="1 calls wait already"):
        await gate.enter(5.0)
    gate.leave()
    await waiting


async def test_waiting_ends_with_the_time():
    gate = Gate(slots=1, max_queue=1)
    gate.try_enter()
    with pytest.raises(TimeoutError):
        await gate.enter(0.01)
    gate.leave()
    assert gate.try_enter()


async def test_slot_that_arrives_with_the_cancellation_is_passed_on():
    gate = Gate(slots=1, max_queue=2)
    gate.try_enter()
    first, second = (asyncio.create_task(gate.enter(5.0)) for _ in range(2))
    await asyncio.sleep(0)
    gate.leave()
    first.cancel()
    await second
    assert first.cancelled()
    gate.leave()
    assert gate.try_enter()


def test_callers_of_a_closed_loop_lose_their_place():
    gate = Gate(slots=1, max_queue=4)
    gate.try_enter()
    loop = asyncio.new_event_loop()
    task = loop.create_task(gate.enter(5.0))
    loop.run_until_complete(asyncio.sleep(0))
    turn = gate._waiting[0]
    loop.close()
    assert not turn.done()
    gate.leave()
    assert gate.try_enter()
    # The loop is gone, so the task has to be ended by hand.
    task._log_destroy_pending = False
    with pytest.raises(asyncio.CancelledError):
        task.get_coro().throw(asyncio.CancelledError())


@given(
    st.lists(st.tuples(st.sampled_from(["enter", "cancel", "leave"]), st.integers(0, 5)), max_size=40),
    st.integers(1, 3),
)
def test_slots_are_neither_lost_nor_made(steps, slots):
    async def play() -> None:
        gate, inside = Gate(slots=slots, max_queue=4), 0
        tasks: list[asyncio.Task[None]] = []
        held = 0
        for step, choice in steps:
            if step == "enter":
                if gate.try_enter():
                    held += 1
                else:
                    tasks.append(asyncio.create_task(gate.enter(60.0)))
            elif step == "cancel" and tasks:
                tasks[choice % len(tasks)].cancel()
            elif step == "leave" and held:
                held -= 1
                gate.leave()
            if choice % 2:
                await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        entered = sum(task.done() and not task.cancelled() and task.exception() is None for task in tasks)
        assert held + entered <= slots
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(held + entered):
            gate.leave()
        while gate.try_enter():
            inside += 1
        assert inside == slots

    asyncio.run(play())
