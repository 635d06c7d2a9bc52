from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import idle, timeless, until

from icrl.errors import RewardError, SandboxError
from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Plan, Rollout
from icrl.seeds import seed_for
from icrl.testing import FailingTool, ScriptedEngine
from icrl.trajectory import Group, StopReason, Trajectory
from icrl.types import Demonstration, SamplingParams, Task

DEMO = Demonstration(query="1 + 1?", answer="2")


async def score(trajectory: Trajectory, task: Task) -> SimpleNamespace:
    right = float(trajectory.answer in task.answers)
    return SimpleNamespace(total=right, components={"em": right})


class Quiz(ScriptedEngine):
    """An engine that answers a question with its last word, after as many seconds as its first word says."""

    def __init__(self, **options):
        super().__init__(self._answer, **options)
        self.now = self.most = 0

    def _answer(self, ids: Sequence[int]) -> str:
        question = self.tokenizer.decode(ids).rpartition("Question: ")[2].splitlines()[0]
        return f"<answer> {question.split()[-1]} </answer>"

    async def generate(self, ids, params, **options):
        question = self.tokenizer.decode(ids).rpartition("Question: ")[2].split()[0]
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(float(question))
            return await super().generate(ids, params, **options)
        finally:
            self.now -= 1


def plan(delay_s: float, word: str, **options) -> Plan:
    return Plan(task=Task(query=f"{delay_s} {word}", answers=(word,)), id=f"{word}/", **options)


async def collect(plans: Sequence[Plan], **options) -> list[Group]:
    async with Agent(Quiz()) as agent:
        return await Rollout(agent, score=score, **options).collect(plans)


# ---- groups


async def test_groups_arrive_as_they_complete():
    plans = [plan(0.1, "slow"), plan(0.05, "middle"), plan(0.0, "fast")]
    async with Agent(Quiz()) as agent, Rollout(agent, score=score).groups(plans) as groups:
        assert [group.task.answers[0] async for group in groups] == ["fast", "middle", "slow"]


@settings(max_examples=25)
@given(
    words=st.lists(st.sampled_from("abcde"), max_size=5),
    members=st.integers(1, 3),
    concurrency=st.integers(1, 6),
)
def test_collected_groups_are_in_the_order_of_the_plans(words, members, concurrency):
    # One task object may stand in several plans.
    tasks = {word: Task(query=f"0.00{ord(word) % 4} {word}", answers=(word,)) for word in words}
    plans = [
        Plan(task=tasks[word], members=members, id=f"{i}/", demonstrations=(DEMO,) * (i % 2))
        for i, word in enumerate(words)
    ]
    groups = asyncio.run(collect(plans, concurrency=concurrency))
    assert [group.task.answers for group in groups] == [(word,) for word in words]
    assert [[t.id for t in group.trajectories] for group in groups] == [
        [f"{i}/{member}" for member in range(members)] for i in range(len(words))
    ]
    assert [group.trajectories[0].shots for group in groups] == [i % 2 for i in range(len(words))]
    assert all(group.rewards == (1.0,) * members for group in groups)
    assert all(part == {"em": 1.0} for group in groups for part in group.components)


async def test_members_share_their_prompt_and_differ_in_their_seed():
    engine = Quiz()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score, sampling=SamplingParams(temperature=0.5))
        (group,) = await rollout.collect([plan(0, "x", members=4, seed=7, demonstrations=(DEMO,))])
    prompts = {t.segments[:-1] for t in group.trajectories}
    assert len(prompts) == 1
    by_id = {request.request_id: request.params for request in engine.requests}
    assert [by_id[f"x/{i}/0"].seed for i in range(4)] == [seed_for(seed_for(7, i), 0) for i in range(4)]
    assert {params.temperature for params in by_id.values()} == {0.5}
    assert len({params.seed for params in by_id.values()}) == 4


async def test_a_rollout_can_be_repeated():
    plans = [plan(0, word, members=2, seed=3) for word in "ab"]
    first, second = [await collect(plans) for _ in range(2)]
    assert [[timeless(t) for t in g.trajectories] for g in first] == [
        [timeless(t) for t in g.trajectories] for g in second
    ]


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_no_more_trajectories_are_in_flight_than_allowed(concurrency):
    engine = Quiz(latency_s=0.01)
    async with Agent(engine) as agent:
        await Rollout(agent, score=score, concurrency=concurrency).collect([plan(0, w, members=3) for w in "ab"])
    assert engine.most == concurrency


# ---- failures


async def test_a_member_that_fails_is_data_on_its_group():
    def script(ids):
        calls.append(ids)
        return "<fail> x </fail>" if len(calls) == 2 else "<answer> x </answer>"

    calls: list[Sequence[int]] = []
    engine = ScriptedEngine(script)
    async with Agent(engine, tools=[FailingTool(error=SandboxError("escaped"))]) as agent:
        (group,) = await Rollout(agent, score=score).collect([plan(0, "x", members=3)])
    assert [t.stop_reason for t in group.trajectories].count(StopReason.ERROR) == 1
    assert sorted(group.rewards) == [0.0, 1.0, 1.0]
    assert [reward for _, reward in group.scored()] == [1.0, 1.0]


async def test_what_a_reward_raises_reaches_the_caller_as_it_is():
    async def broken(trajectory, task):
        raise RewardError("not a number")

    engine = Quiz()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=broken)
        with pytest.raises(RewardError, match="not a number"):
            await rollout.collect([plan(0, "a", members=2), plan(1, "b")])
    assert idle(engine)


@pytest.mark.parametrize(
    ("error", "raised"), [(TypeError("a bug"), TypeError), (asyncio.CancelledError(), RewardError)]
)
async def test_a_lost_group_does_not_hang_its_consumer(error, raised):
    async def broken(trajectory, task):
        raise error

    async with Agent(Quiz()) as agent:
        with pytest.raises(raised):
            async with asyncio.timeout(5):
                await Rollout(agent, score=broken).collect([plan(0, "a")])


# ---- ending


async def test_stop_completes_every_group_with_labelled_partials():
    engine = Quiz(latency_s=50)
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score, concurrency=2)
        plans = [plan(0, word, members=2) for word in "abc"]
        collecting = asyncio.create_task(rollout.collect(plans))
        await until(lambda: len(engine.live) == 2)
        rollout.stop()
        groups = await collecting
        assert [[t.stop_reason for t in g.trajectories] for g in groups] == [[StopReason.ABORTED] * 2] * 3
        assert len(engine.requests) == 2
        assert {g.rewards for g in groups} == {(0.0, 0.0)}
    assert idle(engine)


async def test_a_stopped_rollout_can_go_on_with_other_plans():
    async with Agent(Quiz()) as agent:
        rollout = Rollout(agent, score=score)
        rollout.stop()
        (group,) = await rollout.collect([plan(0, "a")])
    assert group.rewards == (1.0,)


async def test_leaving_the_block_cancels_the_rest():
    engine = Quiz(latency_s=0.0)
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score, concurrency=2)
        async with rollout.groups([plan(0, "fast"), plan(50, "slow"), plan(50, "queued")]) as groups:
            async for group in groups:
                assert group.task.answers == ("fast",)
                break
        assert idle(engine)
        assert [g.rewards for g in await rollout.collect([plan(0, "next")])] == [(1.0,)]


async def test_cancelling_a_rollout_leaves_nothing():
    engine = Quiz(latency_s=50)
    async with Agent(engine) as agent:
        task = asyncio.create_task(Rollout(agent, score=score).collect([plan(0, "a", members=3)]))
        await until(lambda: len(engine.live) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert idle(engine)
