"""Groups that have become unlikely to be informative are ended in flight, and what that costs is on the books."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest
from held import PARTIAL, Held, by_answer, plan_of
from watched import idle

from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.runtime.rollout.beta_binomial import chance_informative
from icrl.runtime.tools.tool import ToolPolicy
from icrl.testing import HangingTool, ScriptedEngine
from icrl.trajectory import StopReason

# With this prior, four of eight that agree leave a chance of 0.0011 that the others do not.
STOP = RolloutPolicy(stop_groups_below=0.01, stop_prior=(1.0, 0.002))


async def roll(script, *, policy=STOP, concurrency=256, names="a", members=8):
    engine, discarded = Held(), []
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, policy=policy, concurrency=concurrency, on_discard=discarded.append)
        collecting = asyncio.create_task(rollout.collect([plan_of(name, members=members) for name in names]))
        for session, word in script:
            await (engine.fail(session) if word is None else engine.say(session, word))
        groups = await collecting
    assert idle(engine)
    return groups, rollout.tally, discarded, engine


async def test_the_rest_of_a_group_that_agrees_is_aborted():
    script = [(f"a/{i}", "yes") for i in (0, 2, 4, 6)]
    (group,), tally, discarded, engine = await roll(script)
    assert [t.id for t in group.trajectories] == ["a/0", "a/2", "a/4", "a/6"]
    assert group.rewards == (1.0,) * 4
    assert sorted(engine.aborts) == ["a/1", "a/3", "a/5", "a/7"]
    assert {(t.stop_reason, t.response_text) for t in discarded} == {(StopReason.ABORTED, PARTIAL)}
    assert (tally.started, tally.finished, tally.failed) == (8, 8, 0)
    assert (tally.groups_stopped, tally.members_stopped) == (1, 4)
    mean = group.trajectories[0].sampled_tokens
    assert tally.tokens_saved_estimate == pytest.approx(4 * (mean - len(PARTIAL)))
    assert tally.informative_lost_estimate == pytest.approx(chance_informative(4, 4, a=1.0, b=0.002))


async def test_members_not_yet_begun_are_never_begun_and_their_slots_go_to_the_next_group():
    script = [(f"a/{i}", "no") for i in range(4)] + [(f"b/{i}", w) for i, w in enumerate(["yes", "no"] * 4)]
    groups, tally, discarded, engine = await roll(script, concurrency=4, names="ab")
    assert [len(group.trajectories) for group in groups] == [4, 8]
    assert tally.groups_stopped == 1
    assert tally.members_stopped == 4
    assert tally.started == tally.finished >= len(engine.order)
    assert len(discarded) == tally.started - 12
    assert [name for name in engine.order if name.startswith("b/")] == [f"b/{i}" for i in range(8)]


async def test_a_group_that_differs_is_not_stopped():
    script = [(f"a/{i}", "yes") for i in range(3)] + [("a/3", "no")] + [(f"a/{i}", "yes") for i in range(4, 8)]
    (group,), tally, _, _ = await roll(script)
    assert len(group.trajectories) == 8
    assert tally.groups_stopped == 0


async def test_real_valued_rewards_agree_only_where_they_are_equal():
    script = [("a/0", "0.3"), ("a/1", "0.3"), ("a/2", "0.3"), ("a/3", "0.3001"), *((f"a/{i}", "0.3") for i in (4, 5))]
    (group,), tally, _, _ = await roll(script, members=6)
    assert len(group.trajectories) == 6
    assert tally.groups_stopped == 0
    script = [(f"a/{i}", "0.3") for i in range(4)]
    (group,), tally, _, _ = await roll(script, members=6)
    assert len(group.trajectories) == 4


async def test_failed_members_say_nothing_and_are_not_replaced_afterwards():
    policy = RolloutPolicy(stop_groups_below=0.01, stop_prior=(1.0, 0.002), failed="replace", attempts=2)
    script = [("a/7", None), ("a/7.1", None), *((f"a/{i}", "yes") for i in range(4))]
    (group,), tally, _, _ = await roll(script, policy=policy)
    assert [t.id for t in group.trajectories] == ["a/0", "a/1", "a/2", "a/3", "a/7.1"]
    assert (tally.groups_stopped, tally.members_stopped, tally.replaced) == (1, 3, 1)


async def test_too_few_finished_members_decide_nothing():
    policy = RolloutPolicy(stop_groups_below=0.01, stop_prior=(1.0, 0.002), stop_after=7)
    script = [(f"a/{i}", "yes") for i in range(7)]
    (group,), tally, _, _ = await roll(script, policy=policy)
    assert (len(group.trajectories), tally.members_stopped) == (7, 1)


async def test_a_member_that_is_being_judged_counts():
    """It has cost all it will; and if it differs, the group is informative after all."""
    judge = asyncio.Event()

    async def score(trajectory, task):
        if trajectory.id == "a/4":
            await judge.wait()
        return await by_answer(trajectory, task)

    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score, policy=STOP)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=8)]))
        await engine.say("a/4", "no")
        for index in range(4):
            await engine.say(f"a/{index}", "yes")
        judge.set()
        (group,) = await collecting
    assert [t.id for t in group.trajectories] == [f"a/{i}" for i in range(5)]
    assert group.informative
    assert rollout.tally.members_stopped == 3
    assert idle(engine)


async def test_nothing_is_stopped_where_all_others_are_being_judged():
    judge = asyncio.Event()

    async def score(trajectory, task):
        if trajectory.id in ("a/4", "a/5"):
            await judge.wait()
        return await by_answer(trajectory, task)

    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score, policy=STOP)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=6)]))
        for index in (4, 5, 0, 1, 2, 3):
            await engine.say(f"a/{index}", "yes")
        judge.set()
        (group,) = await collecting
    assert group.rewards == (1.0,) * 6
    assert (rollout.tally.groups_stopped, rollout.tally.informative_lost_estimate) == (0, 0.0)


async def test_the_tools_of_stopped_members_are_cancelled():
    tool = HangingTool(policy=ToolPolicy(timeout_s=60.0))
    replies = iter(["<hang> x </hang>"] * 2 + ["<answer> yes </answer>"] * 4)
    engine = ScriptedEngine(lambda ids: next(replies))
    async with Agent(engine, tools=[tool]) as agent:
        rollout = Rollout(agent, score=by_answer, policy=STOP)
        (group,) = await rollout.collect([plan_of("a", members=6)])
    assert len(group.trajectories) == 4
    assert tool.cancellations == 2
    assert idle(engine)


async def test_it_is_off_unless_asked_for():
    script = [(f"a/{i}", "yes") for i in range(8)]
    (group,), tally, _, _ = await roll(script, policy=RolloutPolicy(stop_prior=(1.0, 1e-9)))
    assert len(group.trajectories) == 8
    assert tally.groups_stopped == 0


# ---- the law: no more groups are lost than the books say


async def simulate(*, bound: float | None, prior: tuple[float, float] | None, groups: int = 250, members: int = 8):
    """Roll out tasks whose chance of success is drawn from Beta(0.3, 0.3), the same ones whatever the rule."""
    draw = random.Random(13)
    fates = [[draw.random() < p for _ in range(members)] for p in [draw.betavariate(0.3, 0.3) for _ in range(groups)]]

    async def score(trajectory, task):
        group, _, member = trajectory.id.partition("/")
        return SimpleNamespace(total=float(fates[int(group)][int(member)]), components={})

    async with Agent(ScriptedEngine(lambda ids: "<answer> x </answer>")) as agent:
        policy = RolloutPolicy(stop_groups_below=bound, stop_prior=prior)
        rollout = Rollout(agent, score=score, policy=policy, concurrency=4)
        found = await rollout.collect([plan_of(str(n), members=members) for n in range(groups)])
    informative = sum(len(set(fate)) > 1 for fate in fates)
    return found, rollout.tally, informative - sum(group.informative for group in found)


@pytest.mark.parametrize("prior", [(0.3, 0.3), None])
async def test_as_many_informative_groups_are_lost_as_the_books_say(prior):
    _, tally, lost = await simulate(bound=0.2, prior=prior)
    assert tally.groups_stopped > 60
    assert tally.members_stopped > 150
    # Lost groups are a sum of independent events with the chances that were summed up; four standard deviations.
    assert abs(lost - tally.informative_lost_estimate) <= 4 * tally.informative_lost_estimate**0.5 + 1
    assert tally.informative_lost_estimate <= 0.2 * tally.groups_stopped


async def test_without_a_bound_nothing_is_lost():
    found, tally, lost = await simulate(bound=None, prior=(0.3, 0.3), groups=40)
    assert (lost, tally.groups_stopped, tally.informative_lost_estimate) == (0, 0, 0.0)
    assert all(len(group.trajectories) == 8 for group in found)


async def test_nothing_known_means_nothing_stopped_for_small_bounds():
    """A uniform prior leaves a chance of 1 in 9 after seven of eight."""
    _, tally, _ = await simulate(bound=0.1, prior=(1.0, 1.0), groups=40)
    assert tally.groups_stopped == 0
