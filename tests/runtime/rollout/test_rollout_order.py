"""Who runs when: oldest group first, one prompt a group, slots shared by everybody who calls."""

from __future__ import annotations

import asyncio

import pytest
from held import Held, by_answer, plan_of
from watched import idle, until

from icrl.runtime.agent import Agent
from icrl.runtime.model import Model
from icrl.runtime.rollout import Plan, Rollout, RolloutPolicy
from icrl.types import Task


async def test_members_of_begun_groups_go_before_new_groups():
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=3)
        collecting = asyncio.create_task(rollout.collect([plan_of(name, members=2) for name in "abc"]))
        await engine.asks("a/0", "a/1", "b/0")
        await engine.say("a/1", "yes")
        await engine.asks("a/0", "b/0", "b/1")
        await engine.say("a/0", "yes")
        for name in ("b/0", "b/1", "c/0", "c/1"):
            await engine.say(name, "yes")
        await collecting
    assert engine.order == ["a/0", "a/1", "b/0", "b/1", "c/0", "c/1"]


async def test_a_member_made_anew_goes_before_younger_groups():
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=1, policy=RolloutPolicy(failed="replace"))
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=1), plan_of("b", members=2)]))
        await engine.fail("a/0")
        for name in ("a/0.1", "b/0", "b/1"):
            await engine.say(name, "yes")
        await collecting
    assert engine.order == ["a/0", "a/0.1", "b/0", "b/1"]


async def test_calls_share_the_slots_first_come_first_served():
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=2)
        first = asyncio.create_task(rollout.collect([plan_of("a", members=3)]))
        await engine.asks("a/0", "a/1")
        second = asyncio.create_task(rollout.collect([plan_of("b", members=2)]))
        await engine.say("a/0", "yes")
        await engine.asks("a/1", "a/2")
        await engine.say("a/1", "yes")
        await engine.asks("a/2", "b/0")
        await engine.say("a/2", "yes")
        assert [group.rewards for group in await first] == [(1.0, 1.0, 1.0)]
        await engine.say("b/0", "no")
        await engine.say("b/1", "yes")
        assert [group.rewards for group in await second] == [(0.0, 1.0)]
        assert idle(engine)


async def test_leaving_one_call_hands_its_slots_to_the_other():
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=2)
        first = asyncio.create_task(rollout.collect([plan_of("a", members=9)]))
        await engine.asks("a/0", "a/1")
        second = asyncio.create_task(rollout.collect([plan_of("b", members=2)]))
        await asyncio.sleep(0)
        first.cancel()
        await engine.asks("b/0", "b/1")
        await engine.say("b/0", "yes")
        await engine.say("b/1", "yes")
        assert [group.rewards for group in await second] == [(1.0, 1.0)]
    tally = rollout.tally
    assert (tally.started, tally.finished, tally.cancelled, tally.in_flight) == (4, 2, 2, 0)


async def test_a_prompt_is_rendered_once_a_group_and_not_before_its_first_member_starts(monkeypatch):
    rendered = []
    render = Model.prompt

    def counting(self, messages, demonstrations, offer=None):
        rendered.append(messages[0].content)
        return render(self, messages, demonstrations, offer)

    monkeypatch.setattr(Model, "prompt", counting)
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=3)
        collecting = asyncio.create_task(rollout.collect([plan_of(str(n), members=2) for n in range(500)]))
        await engine.asks("0/0", "0/1", "1/0")
        assert rendered == ["say 0", "say 1"]
        # Those that wait are no tasks either: three members, the watchdog, the call, and this test.
        assert len(asyncio.all_tasks()) == 6
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)
    assert rendered == ["say 0", "say 1"]
    assert idle(engine)


async def test_a_group_without_members_is_complete_at_once():
    engine = Held()
    async with Agent(engine) as agent:
        groups = await Rollout(agent, score=by_answer).collect([plan_of("a", members=0)])
    assert [group.trajectories for group in groups] == [()]


async def test_what_a_prompt_cannot_be_made_of_reaches_the_caller():
    engine = Held()
    async with Agent(engine) as agent:
        good, bad = plan_of("a"), Plan(task=Task(query="\ud800"))
        with pytest.raises(ValueError, match="surrogate"):
            await Rollout(agent, score=by_answer).collect([good, bad])
        assert idle(engine)


async def test_thousands_are_in_flight_in_one_loop():
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=2048)
        collecting = asyncio.create_task(rollout.collect([plan_of(str(n), members=8) for n in range(256)]))
        await until(lambda: len(engine.live) == 2048)
        for future in tuple(engine.asked.values()):
            future.set_result("<answer> yes </answer>")
        groups = await collecting
    assert len(groups) == 256
    assert all(group.rewards == (1.0,) * 8 for group in groups)
    assert rollout.tally.finished == rollout.tally.started == 2048
