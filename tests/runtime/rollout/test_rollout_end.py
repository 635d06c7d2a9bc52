"""Every way to end: a deadline, a stop, leaving, cancelling, Ctrl-C. Partials are labelled, and nothing is left."""

from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace

import pytest
from held import PARTIAL, Held, by_answer, plan_of
from watched import idle, until

from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.runtime.tools.tool import ToolPolicy
from icrl.testing import HangingTool, ScriptedEngine
from icrl.trajectory import StopReason

QUICK = RolloutPolicy(grace_s=0.05)


@pytest.mark.parametrize("where", ["policy", "call"])
async def test_a_step_returns_at_its_deadline_with_everything_labelled(where):
    engine = Held()
    policy = RolloutPolicy(step_deadline_s=0.2 if where == "policy" else None)
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=3, policy=policy)
        plans = [plan_of(name, members=2) for name in "abc"]
        collecting = asyncio.create_task(rollout.collect(plans, deadline_s=None if where == "policy" else 0.2))
        await engine.say("a/0", "yes")
        groups = await collecting
    reasons = {t.id: t.stop_reason for group in groups for t in group.trajectories}
    assert reasons.pop("a/0") is StopReason.ANSWER
    assert set(reasons.values()) == {StopReason.DEADLINE}
    texts = {t.id: t.response_text for group in groups for t in group.trajectories}
    assert [texts[name] for name in ("a/1", "b/0", "b/1")] == [PARTIAL] * 3
    # Those that waited for a slot have their prompt, and not a token more; the engine was not bothered.
    assert [texts[name] for name in ("c/0", "c/1")] == ["", ""]
    assert all(t.prompt_length for group in groups for t in group.trajectories)
    assert engine.order == ["a/0", "a/1", "b/0", "b/1"]
    assert rollout.tally.finished == 6
    assert rollout.tally.failed == 0
    assert idle(engine)


async def test_a_deadline_is_kept_whatever_hangs():
    """The engine does not answer its abort, and the reward never answers at all."""

    async def score(trajectory, task):
        if trajectory.id == "a/0":
            await asyncio.Event().wait()
        return SimpleNamespace(total=0.25, components={})

    engine = Held(obeys=False)
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score, policy=QUICK)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=2)], deadline_s=0.2))
        await engine.say("a/0", "yes")
        (group,) = await collecting
    judged, cut = group.trajectories
    assert (judged.stop_reason, judged.error.kind) == (StopReason.STALLED, "Stalled")
    assert (cut.stop_reason, cut.error, cut.response) == (StopReason.DEADLINE, None, ())
    assert group.rewards == (0.0, 0.25)  # what was cut is judged like any other partial
    assert idle(engine)


async def test_no_failure_is_replaced_once_the_step_is_over():
    engine = Held()
    policy = RolloutPolicy(failed="replace", stall_s=0.3, grace_s=0.05)
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=1, policy=policy)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=3)]))
        await engine.asks("a/0")
        engine.asked["a/0"].add_done_callback(lambda _: None)
        rollout.stop()
        (group,) = await collecting
    assert [t.stop_reason for t in group.trajectories] == [StopReason.ABORTED] * 3
    assert rollout.tally.started == 3
    assert engine.order == ["a/0"]


async def test_stop_ends_every_call_and_the_next_one_goes_on():
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer)
        calls = [asyncio.create_task(rollout.collect([plan_of(name)])) for name in "ab"]
        await until(lambda: len(engine.live) == 8)
        rollout.stop(StopReason.DEADLINE)
        for call in calls:
            (group,) = await call
            assert {t.stop_reason for t in group.trajectories} == {StopReason.DEADLINE}
            assert {t.response_text for t in group.trajectories} == {PARTIAL}
        third = asyncio.create_task(rollout.collect([plan_of("c", members=1)]))
        await engine.say("c/0", "yes")
        assert (await third)[0].rewards == (1.0,)


async def test_only_the_first_reason_to_end_counts():
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=2)]))
        await engine.asks("a/0", "a/1")
        rollout.stop(StopReason.DEADLINE)
        rollout.stop(StopReason.ABORTED)
        (group,) = await collecting
    assert {t.stop_reason for t in group.trajectories} == {StopReason.DEADLINE}
    assert sorted(engine.aborts) == ["a/0", "a/1"]


async def test_cancelling_cancels_tools_and_judges_too():
    judged = asyncio.Event()

    async def score(trajectory, task):
        judged.set()
        await asyncio.Event().wait()

    tool = HangingTool(policy=ToolPolicy(timeout_s=60.0))
    engine = ScriptedEngine(lambda ids: "<hang> x </hang>" if len(ids) % 2 else "<answer> yes </answer>")
    async with Agent(engine, tools=[tool]) as agent:
        rollout = Rollout(agent, score=score)
        plans = [plan_of("a", members=2), plan_of("ab", members=2)]  # prompts of an even and an odd length
        collecting = asyncio.create_task(rollout.collect(plans))
        await judged.wait()
        await until(lambda: len(tool.calls) == 2)
        collecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collecting
        assert idle(engine)
    assert tool.cancellations == 2
    tally = rollout.tally
    assert (tally.started, tally.finished, tally.cancelled) == (4, 0, 4)


async def test_an_error_of_one_call_leaves_the_other_alone():
    async def score(trajectory, task):
        if trajectory.id.startswith("bad"):
            raise TypeError("a bug")
        return await by_answer(trajectory, task)

    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score)
        good = asyncio.create_task(rollout.collect([plan_of("good", members=1)]))
        bad = asyncio.create_task(rollout.collect([plan_of("bad", members=2)]))
        await engine.say("bad/0", "yes")
        with pytest.raises(TypeError, match="a bug"):
            await bad
        await engine.asks("good/0")
        await engine.say("good/0", "yes")
        assert (await good)[0].rewards == (1.0,)
        assert idle(engine)
    assert (rollout.tally.started, rollout.tally.finished, rollout.tally.cancelled) == (3, 1, 2)


def test_ctrl_c_leaves_nothing():
    engine = Held()

    async def main():
        async with Agent(engine) as agent:
            rollout = Rollout(agent, score=by_answer)
            asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
            try:
                await rollout.collect([plan_of("a")])
            finally:
                assert idle(engine)
                assert rollout.tally.cancelled == rollout.tally.started == 4

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_inside_a_reward_leaves_nothing(error):
    engine, left = Held(), []

    async def score(trajectory, task):
        raise error

    async def main():
        async with Agent(engine) as agent:
            collecting = asyncio.create_task(Rollout(agent, score=score).collect([plan_of("a")]))
            try:
                await engine.say("a/0", "yes")
                await collecting
            finally:
                await asyncio.gather(collecting, return_exceptions=True)
                left.append(asyncio.all_tasks() - {asyncio.current_task()})

    with pytest.raises(error):
        asyncio.run(main())
    assert left == [set()]
    assert not engine.live
