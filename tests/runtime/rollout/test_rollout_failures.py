"""Failed trajectories are kept, replaced or dropped, and always counted; a reward that fails is data too."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from held import Held, by_answer, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import idle

from icrl.errors import ConfigError, EngineError, RewardError
from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.seeds import seed_for
from icrl.testing import ScriptedEngine
from icrl.trajectory import StopReason


async def roll(policy: RolloutPolicy, script, plans, **options):
    """Roll out with an engine that is told what to do by a list of steps."""
    engine, discarded = Held(), []
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer, policy=policy, on_discard=discarded.append, **options)
        collecting = asyncio.create_task(rollout.collect(plans))
        for session, word in script:
            await (engine.fail(session) if word is None else engine.say(session, word))
        groups = await collecting
    assert idle(engine)
    return groups, rollout.tally, discarded, engine


async def test_kept_failures_stay_in_their_group_without_being_judged():
    script = [("a/0", "yes"), ("a/1", None), ("a/2", "no")]
    (group,), tally, discarded, _ = await roll(RolloutPolicy(), script, [plan_of("a", members=3)])
    assert [t.stop_reason.value for t in group.trajectories] == ["answer", "error", "answer"]
    assert group.rewards == (1.0, 0.0, 0.0)
    assert [reward for _, reward in group.scored()] == [1.0, 0.0]
    assert (tally.started, tally.finished, tally.failed, tally.replaced, tally.dropped) == (3, 3, 1, 0, 0)
    assert discarded == []


async def test_dropped_failures_leave_their_group():
    script = [("a/0", "yes"), ("a/1", None), ("a/2", "no")]
    (group,), tally, discarded, _ = await roll(RolloutPolicy(failed="drop"), script, [plan_of("a", members=3)])
    assert [t.id for t in group.trajectories] == ["a/0", "a/2"]
    assert (tally.failed, tally.dropped) == (1, 1)
    assert [t.id for t in discarded] == ["a/1"]


async def test_a_group_whose_members_all_fail_is_still_a_group():
    script = [("a/0", None), ("a/1", None)]
    (group,), tally, _, _ = await roll(RolloutPolicy(failed="drop"), script, [plan_of("a", members=2)])
    assert group.trajectories == ()
    assert not group.informative
    assert tally.dropped == 2


async def test_replaced_failures_have_a_fresh_seed_in_the_same_place():
    script = [("a/0", "yes"), ("a/1", None), ("a/2", "no"), ("a/1.1", None), ("a/1.2", "yes")]
    plan = plan_of("a", members=3, seed=7)
    (group,), tally, discarded, engine = await roll(RolloutPolicy(failed="replace"), script, [plan])
    assert [t.id for t in group.trajectories] == ["a/0", "a/1.2", "a/2"]
    assert group.rewards == (1.0, 1.0, 0.0)
    assert (tally.started, tally.finished, tally.failed, tally.replaced) == (5, 5, 2, 2)
    assert [t.id for t in discarded] == ["a/1", "a/1.1"]
    assert engine.params["a/1.2"].seed == seed_for(seed_for(7, 1, "attempt", 2), 0)
    assert len({params.seed for params in engine.params.values()}) == 5


async def test_attempts_are_bounded_and_the_last_is_kept():
    script = [("a/0", None), ("a/0.1", None)]
    policy = RolloutPolicy(failed="replace", attempts=2)
    (group,), tally, _, _ = await roll(policy, script, [plan_of("a", members=1)])
    assert [(t.id, t.stop_reason) for t in group.trajectories] == [("a/0.1", StopReason.ERROR)]
    assert (tally.failed, tally.replaced) == (2, 1)


# ---- rewards


async def test_a_reward_that_fails_is_data_on_its_trajectory(caplog):
    async def score(trajectory, task):
        if trajectory.id == "a/1":
            raise RewardError("division by zero")
        return await by_answer(trajectory, task)

    engine = ScriptedEngine(lambda ids: "<answer> yes </answer>")
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=score)
        (group,) = await rollout.collect([plan_of("a", members=3)])
    bad = group.trajectories[1]
    assert (bad.stop_reason, bad.error.kind, bad.error.message) == ("error", "RewardError", "division by zero")
    assert bad.answer is None
    assert bad.sampled_tokens > 0
    assert group.rewards == (1.0, 0.0, 1.0)
    assert (rollout.tally.score_failures, rollout.tally.failed) == (1, 1)
    assert "a/1" in caplog.text
    assert "division by zero" in caplog.text


async def test_a_reward_that_fails_can_have_its_trajectory_replaced():
    async def score(trajectory, task):
        if trajectory.id == "a/1":
            raise RewardError("no")
        return await by_answer(trajectory, task)

    async with Agent(ScriptedEngine(lambda ids: "<answer> yes </answer>")) as agent:
        rollout = Rollout(agent, score=score, policy=RolloutPolicy(failed="replace"))
        (group,) = await rollout.collect([plan_of("a", members=2)])
    assert [t.id for t in group.trajectories] == ["a/0", "a/1.1"]
    assert rollout.tally.replaced == 1


@pytest.mark.parametrize("keep", [None, 1])
async def test_a_reward_that_never_works_is_raised(keep):
    async def score(trajectory, task):
        raise RewardError(f"of {trajectory.id}")

    engine = ScriptedEngine(lambda ids: "<answer> yes </answer>")
    async with Agent(engine) as agent:
        with pytest.raises(RewardError, match="of a/0"):
            await Rollout(agent, score=score).collect([plan_of("a"), plan_of("b")], keep=keep)
    assert idle(engine)


# ---- the books


@settings(max_examples=40)
@given(
    fates=st.lists(st.sampled_from(["yes", "no", "fails", "reward fails"]), min_size=1, max_size=12),
    failed=st.sampled_from(["keep", "replace", "drop"]),
    members=st.integers(1, 4),
    concurrency=st.integers(1, 5),
)
def test_every_trajectory_is_accounted_for(fates, failed, members, concurrency):
    class Fated(ScriptedEngine):
        async def generate(self, ids, params, *, session, **options):
            if fate_of(session) == "fails":
                raise EngineError("is broken")
            return await super().generate(ids, params, session=session, **options)

    def fate_of(session):
        return fates[hash_of(session) % len(fates)]

    def hash_of(session):
        return seed_for(0, session)

    async def score(trajectory, task):
        if fate_of(trajectory.id) == "reward fails":
            raise RewardError("no")
        return SimpleNamespace(total=float(fate_of(trajectory.id) == "yes"), components={})

    async def main():
        discarded = []
        engine = Fated(lambda ids: "<answer> yes </answer>")
        async with Agent(engine) as agent:
            policy = RolloutPolicy(failed=failed, attempts=2)
            rollout = Rollout(agent, score=score, policy=policy, concurrency=concurrency, on_discard=discarded.append)
            try:
                groups = await rollout.collect([plan_of(str(n), members=members) for n in range(3)])
            except RewardError:
                groups = None
            assert idle(engine)
        return groups, rollout.tally, discarded

    groups, tally, discarded = asyncio.run(main())
    assert tally.started == tally.finished
    assert tally.cancelled == tally.in_flight == 0
    assert tally.tokens_discarded == sum(t.sampled_tokens for t in discarded)
    kept = [t for group in groups or () for t in group.trajectories]
    if groups is not None:
        assert len(discarded) == tally.replaced + tally.dropped
    assert tally.finished == len(kept) + len(discarded)
    assert len({t.id for t in kept + discarded}) == tally.finished
    assert tally.tokens == sum(t.sampled_tokens for t in kept + discarded)
    assert tally.failed == sum(t.stop_reason.failed for t in kept + discarded)
    if failed == "drop":
        assert not any(t.stop_reason.failed for t in kept)
    elif groups is not None:
        assert all(len(group.trajectories) == members for group in groups)


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"failed": "kepe"}, "failed: 'kepe' is not one of keep, replace, drop. Did you mean 'keep'?"),
        ({"attempts": 0}, "attempts: must be >= 1, not 0"),
        ({"stop_after": 0}, "stop_after: must be >= 1, not 0"),
        ({"min_concurrency": 0}, "min_concurrency: must be >= 1"),
        ({"stall_s": 0.0}, "stall_s: must be > 0 seconds"),
        ({"grace_s": float("nan")}, "grace_s: must be > 0 seconds"),
        ({"step_deadline_s": -1.0}, "step_deadline_s: must be > 0 seconds or none"),
        ({"stop_groups_below": 1.0}, r"stop_groups_below: must be in \(0, 1\) or none"),
        ({"stop_prior": (1.0, 0.0)}, "stop_prior: both parameters must be > 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        RolloutPolicy(**settings)
