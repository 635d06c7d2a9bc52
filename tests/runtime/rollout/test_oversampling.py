"""`collect(keep=K)`: the first K informative groups, and the books of all the others."""

from __future__ import annotations

import asyncio

import pytest
from held import PARTIAL, Held, by_answer, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import idle, until

from icrl.errors import ConfigError
from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.seeds import seed_for
from icrl.testing import ScriptedEngine
from icrl.trajectory import StopReason


async def test_the_rest_is_ended_once_enough_groups_differ():
    engine, discarded = Held(), []
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=7, on_discard=discarded.append)
        collecting = asyncio.create_task(rollout.collect([plan_of(name, members=2) for name in "abcdef"], keep=2))
        await engine.asks("a/0", "a/1", "b/0", "b/1", "c/0", "c/1", "d/0")
        for session, word in [("a/0", "yes"), ("a/1", "yes"), ("c/0", "yes"), ("c/1", "no"), ("b/0", "yes")]:
            await engine.say(session, word)
        await engine.say("b/1", "no")
        groups = await collecting
    # a is not informative; of d, e and f some members had begun.
    assert [group.task.query for group in groups] == ["say b", "say c"]
    tally = rollout.tally
    assert (tally.groups, tally.groups_surplus) == (2, 1)
    assert tally.groups_cancelled + tally.groups_unbegun == 3
    assert tally.groups_cancelled >= 1
    assert {t.id for t in discarded} >= {"a/0", "a/1", "d/0"}
    ended = [t for t in discarded if not t.id.startswith("a/")]
    assert {(t.stop_reason, t.response_text) for t in ended} == {(StopReason.ABORTED, PARTIAL)}
    assert tally.tokens_discarded == sum(t.sampled_tokens for t in discarded) > 0
    assert tally.started == tally.finished == 4 + len(discarded)
    assert idle(engine)


async def test_a_group_being_judged_is_not_waited_for():
    judged = asyncio.Event()

    async def score(trajectory, task):
        if trajectory.id == "b/1":
            judged.set()
            await asyncio.Event().wait()
        return await by_answer(trajectory, task)

    engine, discarded = Held(), []
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score, on_discard=discarded.append)
        collecting = asyncio.create_task(rollout.collect([plan_of(name, members=2) for name in "ab"], keep=1))
        for session, word in [("b/0", "yes"), ("b/1", "no")]:
            await engine.say(session, word)
        await judged.wait()
        for session, word in [("a/0", "yes"), ("a/1", "no")]:
            await engine.say(session, word)
        (group,) = await collecting
    assert group.task.query == "say a"
    assert [(t.id, t.stop_reason) for t in discarded] == [("b/1", "answer"), ("b/0", "answer")]
    assert rollout.tally.groups_cancelled == 1
    assert idle(engine)


async def test_groups_not_begun_are_never_begun():
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, concurrency=2)
        collecting = asyncio.create_task(rollout.collect([plan_of(name, members=2) for name in "abcdef"], keep=1))
        await engine.say("a/0", "yes")
        await engine.say("a/1", "no")
        (group,) = await collecting
        assert group.task.query == "say a"
        assert rollout.tally.groups_cancelled + rollout.tally.groups_unbegun == 5
        assert rollout.tally.groups_unbegun >= 4
        following = asyncio.create_task(rollout.collect([plan_of("z", members=1)]))
        await engine.say("z/0", "yes")
        await following
    assert set(engine.order) <= {"a/0", "a/1", "b/0", "b/1", "z/0"}


async def test_what_hears_of_discarded_trajectories_may_not_raise():
    def broken(trajectory):
        raise TypeError("a bug")

    engine = Held()
    async with Agent(engine) as agent:
        policy = RolloutPolicy(failed="drop")
        rollout = Rollout(agent, score=by_answer, policy=policy, on_discard=broken)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=2)]))
        await engine.fail("a/0")
        with pytest.raises(TypeError, match="a bug"):
            await collecting
    assert idle(engine)


async def test_too_few_informative_groups_are_made_up_for():
    words = {"a/0": "yes", "a/1": "yes", "b/0": "no", "b/1": "no", "c/0": "yes", "c/1": "no", "d/0": "no", "d/1": "no"}
    engine = Held()
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer)
        collecting = asyncio.create_task(rollout.collect([plan_of(name, members=2) for name in "abcd"], keep=3))
        for session in ("d/0", "d/1", "a/0", "a/1", "b/0", "b/1", "c/0", "c/1"):
            await engine.say(session, words[session])
        groups = await collecting
    assert [group.task.query for group in groups] == ["say a", "say c", "say d"]
    assert rollout.tally.groups_surplus == 1
    assert rollout.tally.groups_cancelled == rollout.tally.groups_unbegun == 0


@pytest.mark.parametrize("keep", [0, 3])
async def test_a_number_that_cannot_be_kept_is_refused(keep):
    async with Agent(Held()) as agent:
        with pytest.raises(ConfigError, match=r"keep: must be between 1 and the number of plans \(2\)"):
            await Rollout(agent, score=by_answer).collect([plan_of("a"), plan_of("b")], keep=keep)


@settings(max_examples=40)
@given(
    plans=st.integers(1, 6),
    share=st.floats(0, 1),
    members=st.integers(1, 3),
    concurrency=st.integers(1, 8),
    data=st.data(),
)
def test_as_many_as_asked_for_come_and_the_books_balance(plans, share, members, concurrency, data):
    keep = data.draw(st.integers(1, plans))

    async def main():
        discarded = []
        engine = ScriptedEngine(lambda ids: f"<answer> {'yes' if seed_for(0, len(ids)) % 2 else 'no'} </answer>")

        async def score(trajectory, task):
            await asyncio.sleep(0)
            scored = await by_answer(trajectory, task)
            scored.total = float(seed_for(1, trajectory.id) % 1000 < 1000 * share)
            return scored

        async with Agent(engine) as agent:
            rollout = Rollout(
                agent, score=score, concurrency=concurrency, on_discard=discarded.append, policy=RolloutPolicy()
            )
            groups = await rollout.collect([plan_of(str(n), members=members) for n in range(plans)], keep=keep)
            await until(lambda: idle(engine))
        return groups, discarded, rollout.tally

    groups, discarded, tally = asyncio.run(main())
    assert len(groups) == keep == tally.groups
    kept = [t for group in groups for t in group.trajectories]
    assert all(len(group.trajectories) == members for group in groups)
    assert tally.started == tally.finished == len(kept) + len(discarded)
    assert tally.groups + tally.groups_surplus + tally.groups_cancelled + tally.groups_unbegun == plans
    if not all(group.informative for group in groups):  # then every group was waited for
        assert tally.groups_cancelled == tally.groups_unbegun == 0
