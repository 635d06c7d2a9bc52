"""Nothing hangs: what is stuck is named, ended, cancelled, and in the end left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from held import PARTIAL, Held, by_answer, plan_of
from hypothesis import given
from hypothesis import strategies as st
from watched import idle, until

from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.runtime.rollout.batch import Batch
from icrl.runtime.rollout.group import OpenGroup
from icrl.runtime.rollout.member import Member
from icrl.runtime.rollout.tally import Ledger
from icrl.runtime.rollout.watchdog import Watchdog
from icrl.runtime.run import Wait
from icrl.runtime.tools.tool import ToolPolicy
from icrl.testing import HangingTool, ScriptedEngine
from icrl.trajectory import Generation, StopReason, Trajectory
from icrl.types import Limits, Task

SOON = RolloutPolicy(stall_s=0.05, score_timeout_s=0.05, grace_s=0.05)
PATIENT = RolloutPolicy(stall_s=60.0, score_timeout_s=60.0, grace_s=0.05)


async def test_an_engine_that_hangs_is_named_and_its_partial_kept(caplog):
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, policy=SOON)
        (group,) = await rollout.collect([plan_of("a", members=2)])
    assert [t.stop_reason for t in group.trajectories] == [StopReason.STALLED] * 2
    assert {(t.error.kind, t.error.message) for t in group.trajectories} == {("Stalled", "waited 0.05 s for engine")}
    assert {t.response_text for t in group.trajectories} == {PARTIAL}
    assert rollout.tally.stalled == {"engine": 2}
    assert rollout.tally.failed == 2
    assert rollout.tally.abandoned == 0
    assert "trajectory a/0 waited 0.05 s for engine" in caplog.text
    assert idle(engine)


async def test_a_tool_that_hangs_is_named_and_what_went_before_kept():
    engine = ScriptedEngine(lambda ids: "<hang> x </hang>")
    tool = HangingTool(policy=ToolPolicy(timeout_s=60.0))
    async with Agent(engine, tools=[tool]) as agent:
        rollout = Rollout(agent, score=by_answer, policy=SOON)
        (group,) = await rollout.collect([plan_of("a", members=1)])
    (trajectory,) = group.trajectories
    assert (trajectory.stop_reason, trajectory.error.message) == ("stalled", "waited 0.05 s for tool hang")
    assert trajectory.response_text == "<hang> x </hang>"
    assert rollout.tally.stalled == {"tool hang": 1}
    assert tool.cancellations == 1
    assert idle(engine)


async def test_an_engine_that_ignores_aborts_is_cancelled():
    engine = Held(obeys=False)
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, policy=SOON)
        (group,) = await rollout.collect([plan_of("a", members=1)])
    (trajectory,) = group.trajectories
    assert (trajectory.stop_reason, trajectory.error.message) == ("stalled", "waited 0.05 s for engine")
    assert trajectory.prompt_length == len(trajectory.ids)
    assert engine.aborts == ["a/0"]
    assert rollout.tally.abandoned == 0
    assert idle(engine)


async def test_an_engine_that_does_not_answer_its_abort_has_stalled_like_any_other(monkeypatch):
    monkeypatch.setattr("icrl.runtime.run.ABORT_GRACE_S", 0.02)
    engine = Held(obeys=False)
    async with Agent(engine) as agent:
        policy = RolloutPolicy(stall_s=0.05, grace_s=30.0)
        (group,) = await Rollout(agent, score=by_answer, policy=policy).collect([plan_of("a", members=1)])
    (trajectory,) = group.trajectories
    assert (trajectory.stop_reason, trajectory.error.message) == ("stalled", "waited 0.05 s for engine")


class Deaf(Held):
    """An engine that ignores aborts and cancellation, as badly written code does."""

    def __init__(self):
        super().__init__(obeys=False)
        self.gone = asyncio.Event()
        self.answers = False

    async def generate(self, *args, **options):
        while not self.gone.is_set():
            try:
                await self.gone.wait()
            except asyncio.CancelledError:
                continue
        if not self.answers:
            raise asyncio.CancelledError
        return Generation(ids=(104, 258), logprobs=(-1.0, -1.0), finish_reason="eos")


@pytest.fixture
async def deaf() -> AsyncIterator[Deaf]:
    engine = Deaf()
    yield engine
    engine.gone.set()


@pytest.mark.parametrize("answers", [False, True])
async def test_what_ignores_even_that_is_left_behind_and_its_slot_handed_on(answers, deaf, caplog):
    engine = deaf
    deaf.answers = answers
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, policy=SOON, concurrency=1)
        groups = await rollout.collect([plan_of("a", members=1), plan_of("b", members=1)])
        assert [t.stop_reason for g in groups for t in g.trajectories] == [StopReason.STALLED] * 2
        assert rollout.tally.abandoned == 2
        assert rollout.tally.in_flight == 0
        assert "trajectory a/0 ignores its cancellation" in caplog.text
        engine.gone.set()
        await until(lambda: idle(engine))
        # What came of it in the end changes nothing.
        assert (rollout.tally.started, rollout.tally.finished) == (2, 2)


async def test_a_step_ends_at_its_deadline_even_then(deaf):
    async with Agent(deaf) as agent:
        rollout = Rollout(agent, score=by_answer, policy=PATIENT)
        (group,) = await rollout.collect([plan_of("a", members=1)], deadline_s=0.05)
        (trajectory,) = group.trajectories
        assert (trajectory.stop_reason, trajectory.error.message) == ("stalled", "ignored its cancellation")
        assert rollout.tally.abandoned == 1
        deaf.gone.set()
        await until(lambda: idle(deaf))


async def test_leaving_does_not_wait_for_ever_either(deaf):
    engine = deaf
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, policy=PATIENT, concurrency=1)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=1)]))
        await until(lambda: rollout.tally.started)
        await asyncio.sleep(0.01)
        collecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collecting
        assert rollout.tally.abandoned == 1
        engine.gone.set()
        await until(lambda: idle(engine))
    assert rollout.tally.cancelled == 1


async def test_leaving_what_hangs_leaves_other_calls_alone(deaf):
    async with Agent(deaf) as agent:
        rollout = Rollout(agent, score=by_answer, policy=PATIENT)
        calls = [asyncio.create_task(rollout.collect([plan_of(name, members=1)])) for name in "ab"]
        await until(lambda: rollout.tally.started == 2)
        await asyncio.sleep(0.01)
        calls[0].cancel()
        await asyncio.gather(calls[0], return_exceptions=True)
        assert (rollout.tally.abandoned, rollout.tally.in_flight) == (1, 2)
        deaf.answers = True
        deaf.gone.set()
        (group,) = await calls[1]
        assert group.trajectories[0].stop_reason is StopReason.END_OF_TURN
        await until(lambda: idle(deaf))


async def test_a_run_that_outlives_its_deadline_is_cut(deaf):
    """The run's own deadline finds an engine that does not listen."""
    engine = deaf
    async with Agent(engine, limits=Limits(deadline_s=0.05)) as agent:
        rollout = Rollout(agent, score=by_answer, policy=PATIENT)
        (group,) = await rollout.collect([plan_of("a", members=1)])
        assert group.trajectories[0].error.message == "did not end within 0.05 s of its deadline"
        assert rollout.tally.stalled == {"end": 1}
        engine.gone.set()
        await until(lambda: idle(engine))


async def test_a_reward_that_hangs_is_ended_and_the_group_completes():
    async def score(trajectory, task):
        if trajectory.id == "a/1":
            await asyncio.Event().wait()
        return await by_answer(trajectory, task)

    engine = ScriptedEngine(lambda ids: "<answer> yes </answer>")
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score, policy=SOON)
        (group,) = await rollout.collect([plan_of("a", members=3)])
    bad = group.trajectories[1]
    assert (bad.stop_reason, bad.error.kind) == (StopReason.STALLED, "Stalled")
    assert bad.error.message.endswith("s for its score")
    assert bad.sampled_tokens > 0
    assert group.rewards == (1.0, 0.0, 1.0)
    assert rollout.tally.stalled == {"score": 1}
    assert idle(engine)


async def test_a_reward_that_ignores_its_cancellation_is_left_behind():
    gone = asyncio.Event()

    async def score(trajectory, task):
        for _ in range(2):
            try:
                await gone.wait()
            except asyncio.CancelledError:
                continue
        return await by_answer(trajectory, task)

    engine = ScriptedEngine(lambda ids: "<answer> yes </answer>")
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score, policy=SOON)
        (group,) = await rollout.collect([plan_of("a", members=1)])
        assert group.trajectories[0].stop_reason is StopReason.STALLED
        assert rollout.tally.abandoned == 1
        gone.set()
        await until(lambda: idle(engine))
    assert rollout.tally.finished == 1


# ---- by the clock


def watched(waits: Wait | None, **options) -> tuple[Watchdog, Member, list[Member]]:
    abandoned: list[Member] = []
    watchdog = Watchdog(RolloutPolicy(stall_s=10.0, score_timeout_s=20.0, grace_s=5.0), Ledger(), abandoned.append)
    run = SimpleNamespace(waits=waits, limits=Limits(deadline_s=100.0), stops=[])
    run.stop = lambda reason, failure=None: run.stops.append((reason, failure))
    group = OpenGroup(order=0, position=0, plan=plan_of("a"), batch=Batch(expected=1))
    member = Member(group=group, index=0, run=run, since=1000.0, **options)
    watchdog.members.add(member)
    return watchdog, member, abandoned


@given(begun=st.floats(1000.0, 1104.9), now=st.floats(0, 120))
def test_a_run_stalls_when_one_wait_is_too_long_however_long_all_took(begun, now):
    watchdog, member, _ = watched(Wait("tool search", begun))
    watchdog.look(min(begun + now, 1104.9))
    stalled = min(begun + now, 1104.9) - begun > 10.0
    assert [reason for reason, _ in member.run.stops] == [StopReason.STALLED] * stalled
    if stalled:
        assert member.failure.message == "waited 10 s for tool search"


def test_whoever_waits_for_nothing_does_not_stall():
    watchdog, member, _ = watched(None)
    watchdog.look(1104.0)
    assert member.reason is None


def test_a_run_is_ended_only_once():
    watchdog, member, _ = watched(Wait("engine", 1000.0))
    for now in (1011.0, 1012.0):
        watchdog.look(now)
    assert len(member.run.stops) == 1


def test_a_run_has_its_deadline_and_a_grace():
    watchdog, member, _ = watched(Wait("engine", 1104.0))
    watchdog.look(1105.0)
    assert member.cancelled_at is None
    watchdog.look(1105.1)
    assert member.cancelled_at is not None
    assert member.failure.message == "did not end within 5 s of its deadline"


def test_what_was_told_to_end_is_cancelled_and_then_left():
    watchdog, member, abandoned = watched(Wait("engine", 1000.0), told_at=1000.0, reason=StopReason.DEADLINE)
    watchdog.look(1005.0)
    assert member.cancelled_at is None
    watchdog.look(1005.1)
    assert member.reason is StopReason.DEADLINE
    member.cancelled_at = 1005.1
    watchdog.look(1010.0)
    assert abandoned == []
    watchdog.look(1010.2)
    assert abandoned == [member]


@given(ended=st.floats(0, 50), now=st.floats(0, 50))
def test_rewards_have_less_time_once_the_step_is_over(ended, now):
    watchdog, member, _ = watched(None)
    member.trajectory = Trajectory(id="a/0", task=Task(query="q"), segments=(), stop_reason=StopReason.ANSWER)
    if ended < 25:
        member.group.batch.ending, member.group.batch.ending_since = StopReason.DEADLINE, 1000.0 + ended
    watchdog.look(1000.0 + now)
    late = now > 20.0 or (ended < 25 and (1000.0 + now) - (1000.0 + ended) > 5.0)
    assert (member.cancelled_at is not None) == late
