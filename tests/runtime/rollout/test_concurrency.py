from __future__ import annotations

import asyncio

import pytest
from held import Held, by_answer, plan_of
from hypothesis import given
from hypothesis import strategies as st
from watched import idle, until

from icrl.errors import ConfigError, EngineError
from icrl.runtime.agent import Agent
from icrl.runtime.engines.protocol import EngineLoad
from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.runtime.rollout.concurrency import FULL, ROOM, STEPS, Window, follow
from icrl.runtime.rollout.slots import Slots
from icrl.runtime.rollout.tally import Ledger

IDLE = EngineLoad(running=4, waiting=0, kv_usage=0.1)
FLOODED = EngineLoad(running=4, waiting=400, kv_usage=0.1)

loads = st.builds(
    EngineLoad, running=st.integers(0, 500), waiting=st.integers(0, 500), kv_usage=st.floats(0, 1, allow_nan=False)
)


@st.composite
def windows(draw):
    low, middle, high = sorted(draw(st.lists(st.integers(1, 600), min_size=3, max_size=3)))
    return Window(limit=middle, minimum=low, maximum=high)


@given(window=windows(), load=loads, in_flight=st.integers(0, 900))
def test_a_window_moves_for_a_reason_and_stays_within_its_bounds(window, load, in_flight):
    after = window.after(load, in_flight=in_flight)
    assert window.minimum <= after.limit <= window.maximum
    if after.limit > window.limit:
        assert load.waiting == 0
        assert load.kv_usage < ROOM
        assert in_flight >= window.limit
    if after.limit < window.limit:
        assert load.kv_usage > FULL or load.waiting > 0
        assert in_flight <= window.limit


@given(window=windows())
def test_it_opens_under_an_idle_engine_and_closes_under_a_full_one(window):
    opened = window
    for _ in range(STEPS + window.maximum):
        opened = opened.after(IDLE, in_flight=opened.limit)
    assert opened.limit == window.maximum
    closed = window
    for _ in range(100):
        closed = closed.after(FLOODED, in_flight=closed.limit)
    assert closed.limit == window.minimum


def test_a_cut_waits_for_the_last_one_to_show():
    window = Window(limit=64, minimum=8, maximum=64).after(FLOODED, in_flight=64)
    assert window.limit == 48
    assert window.after(FLOODED, in_flight=60) == window
    assert window.after(FLOODED, in_flight=48).limit == 36


def test_it_does_not_open_for_nobody():
    window = Window(limit=8, minimum=8, maximum=64)
    assert window.after(IDLE, in_flight=3) == window


def test_bounds_out_of_order_are_refused():
    with pytest.raises(ConfigError, match="minimum <= limit"):
        Window(limit=4, minimum=8, maximum=64)


async def test_an_engine_that_does_not_say_changes_nothing(monkeypatch):
    monkeypatch.setattr("icrl.runtime.rollout.concurrency.PROBE_TIMEOUT_S", 0.01)
    answers = iter([EngineError("is starting"), TimeoutError(), asyncio.CancelledError(), None, FLOODED])
    asked = []

    async def probe():
        answer = next(answers, IDLE)
        asked.append(answer)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    slots, ledger, seen = Slots(64), Ledger(), []
    slots.used = 64
    window = Window(limit=64, minimum=8, maximum=64)
    following = asyncio.create_task(
        follow(probe, window, slots, ledger=ledger, every_s=0.001, changed=lambda: seen.append(slots.limit))
    )
    await until(lambda: len(seen) >= 1)
    following.cancel()
    assert seen[0] == 48
    assert ledger.snapshot().probes_failed == 4


class Telling(Held):
    """An engine that tells how busy it is."""

    def __init__(self):
        super().__init__()
        self.load = FLOODED
        self.probes = 0

    async def probe(self) -> EngineLoad:
        self.probes += 1
        return self.load


async def test_a_rollout_follows_its_engine_and_ends_nothing_for_it():
    engine = Telling()
    policy = RolloutPolicy(min_concurrency=2, probe_every_s=0.001)
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=4, policy=policy)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=8)]))
        await until(lambda: rollout.concurrency == 3)  # cut once; four are still in flight
        await engine.asks("a/0", "a/1", "a/2", "a/3")
        assert engine.aborts == []
        await engine.say("a/0", "yes")
        await engine.say("a/1", "yes")
        await until(lambda: rollout.concurrency == 2)
        await engine.asks("a/2", "a/3")
        engine.load = IDLE
        await until(lambda: rollout.concurrency == 4)
        await engine.asks("a/2", "a/3", "a/4", "a/5")
        for index in range(2, 8):
            await engine.say(f"a/{index}", "no")
        (group,) = await collecting
    assert group.rewards == (1.0, 1.0) + (0.0,) * 6
    assert idle(engine)


@pytest.mark.parametrize("policy", [RolloutPolicy(feedback=False), None])
async def test_concurrency_is_fixed_where_nothing_is_told_or_wanted(policy):
    engine = Held() if policy is None else Telling()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=2, policy=policy)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=4)]))
        for index in range(4):
            await engine.say(f"a/{index}", "yes")
        await collecting
        assert rollout.concurrency == 2
    assert getattr(engine, "probes", 0) == 0


async def test_a_probe_with_a_defect_is_raised_not_waited_for():
    class Broken(Telling):
        async def probe(self):
            if self.load is FLOODED:
                raise TypeError("a bug")
            return await super().probe()

    engine = Broken()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, policy=RolloutPolicy(probe_every_s=0.001))
        failing = asyncio.create_task(rollout.collect([plan_of("a")]))
        with pytest.raises(TypeError, match="a bug"):
            await failing
        engine.load = IDLE  # the next call is followed, and watched, again
        collecting = asyncio.create_task(rollout.collect([plan_of("b", members=1)]))
        await until(lambda: engine.probes > 2)
        await engine.say("b/0", "yes")
        await collecting
    assert idle(engine)


async def test_no_concurrency_at_all_is_refused():
    async with Agent(Held()) as agent:
        with pytest.raises(ConfigError, match="concurrency: must be >= 1"):
            Rollout(agent, score=by_answer, concurrency=0)
