"""Whatever engines, tools, rewards and callers do: every trajectory is accounted for once, and nothing stays behind."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace

from held import plan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import run_virtually

from icrl.errors import EngineError, RewardError
from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Rollout, RolloutPolicy
from icrl.runtime.tools.tool import ToolPolicy, ToolSpec
from icrl.seeds import seed_for
from icrl.testing import ScriptedEngine
from icrl.trajectory import Group
from icrl.types import Limits

ENGINES = (
    "answers",
    "slow",
    "fails",
    "hangs",
    "ignores aborts",
    "is deaf",
    "is deaf and raises",
    "cancels itself",
    "calls",
)
TOOLS = ("answers", "slow", "raises", "hangs", "is deaf", "cancels itself")
REWARDS = ("yes", "no", "slow", "RewardError", "hangs", "is deaf", "is deaf and raises", "cancels itself")
DEAF_S = 40.0
POLICY = {"stall_s": 5.0, "score_timeout_s": 5.0, "grace_s": 1.0}


@dataclass(frozen=True)
class World:
    """What may happen, and to whom."""

    seed: int
    engines: list[str]
    tools: list[str]
    rewards: list[str]

    def fate(self, what: str, who: str) -> str:
        fates = {"engine": self.engines, "tool": self.tools, "reward": self.rewards}[what]
        return fates[seed_for(self.seed, what, who) % len(fates)]

    async def meet(self, fate: str, who: str) -> None:
        """Go through what fate has in store."""
        await asyncio.sleep(Random(f"{self.seed} {who}").random())
        if fate == "slow":
            await asyncio.sleep(2.0)
        elif fate in ("hangs", "ignores aborts"):
            await asyncio.sleep(1e6)
        elif fate == "cancels itself":
            raise asyncio.CancelledError
        elif fate.startswith("is deaf"):
            loop = asyncio.get_running_loop()
            until = loop.time() + DEAF_S
            while loop.time() < until:
                try:
                    await asyncio.sleep(until - loop.time())
                except asyncio.CancelledError:
                    continue
            if fate.endswith("raises"):
                raise ValueError("a bug that nobody waits for any more")


class Fated(ScriptedEngine):
    """Every request has its fate."""

    def __init__(self, world: World) -> None:
        super().__init__(self._reply)
        self.world = world
        self.most = self.now = 0
        self._waiting: dict[str, asyncio.Task[None]] = {}

    def _reply(self, ids):
        called = "<tool_response>" in self.tokenizer.decode(ids) or "<information>" in self.tokenizer.decode(ids)
        return "<fated> {} </fated>" if self._wants_tool and not called else "<answer> yes </answer>"

    async def generate(self, ids, params, *, request_id, session, **options):
        fate = self.world.fate("engine", request_id)
        self._wants_tool = False
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if fate in ("hangs", "slow"):
                self._waiting[request_id] = asyncio.ensure_future(self.world.meet(fate, request_id))
                try:
                    await asyncio.wait([self._waiting[request_id]])
                finally:
                    self._waiting.pop(request_id).cancel()
            else:
                await self.world.meet(fate, request_id)
            if fate == "fails":
                raise EngineError("is broken", engine="fated")
            self._wants_tool = fate == "calls"
            return await super().generate(ids, params, request_id=request_id, session=session, **options)
        finally:
            self.now -= 1

    async def abort(self, request_id):
        if request_id in self._waiting:
            self._waiting[request_id].cancel()
        elif self.world.fate("engine", request_id) == "ignores aborts":
            await asyncio.sleep(1e6)


class FatedTool:
    """Every call has its fate."""

    spec = ToolSpec(name="fated", description="Does what it has to.", parameters={"type": "object", "properties": {}})
    policy = ToolPolicy(timeout_s=1e5)

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls = 0

    async def __call__(self, arguments):
        self.calls += 1
        fate = self.world.fate("tool", str(self.calls))
        await self.world.meet(fate, str(self.calls))
        if fate == "raises":
            raise OSError("broke")
        return "x"


@dataclass(frozen=True)
class Call:
    """One call of `collect` or `groups`, and what becomes of it."""

    plans: int
    members: int
    begins_s: float
    keep: int | None
    deadline_s: float | None
    leaves_s: float | None
    takes: int | None
    """Groups after which a consumer of `groups` leaves, or 0 for never; `None` calls `collect`."""


async def make(rollout: Rollout, call: Call, number: int, taken: list[Group]) -> str:
    """Make a call; note what was handed over."""
    plans = [plan_of(f"{number}{chr(97 + n)}", members=call.members) for n in range(call.plans)]
    await asyncio.sleep(call.begins_s)
    try:
        async with asyncio.timeout(call.leaves_s):
            if call.takes is None:
                keep = None if call.keep is None else min(call.keep, call.plans)
                groups = await rollout.collect(plans, keep=keep, deadline_s=call.deadline_s)
                assert len(groups) == (call.plans if keep is None else keep)
                taken += groups
            else:
                async with rollout.groups(plans, deadline_s=call.deadline_s) as groups:
                    async for group in groups:
                        taken.append(group)
                        await asyncio.sleep(0.3)
                        if call.takes and len(taken) >= call.takes:
                            break
    except TimeoutError:
        return "left"
    except RewardError:
        return "raised"
    return "returned"


CALLS = st.builds(
    Call,
    plans=st.integers(1, 4),
    members=st.integers(0, 4),
    begins_s=st.floats(0, 3),
    keep=st.none() | st.integers(1, 4),
    deadline_s=st.none() | st.floats(0.1, 8),
    leaves_s=st.none() | st.floats(0.1, 20),
    takes=st.none() | st.integers(0, 3),
)
WORLDS = st.builds(
    World,
    seed=st.integers(0, 1000),
    engines=st.lists(st.sampled_from(ENGINES), min_size=1, max_size=6).map(lambda fates: [*fates, "answers", "calls"]),
    tools=st.lists(st.sampled_from(TOOLS), min_size=1, max_size=3),
    rewards=st.lists(st.sampled_from(REWARDS), min_size=1, max_size=4).map(lambda fates: [*fates, "yes", "no"]),
)
POLICIES = st.builds(
    RolloutPolicy,
    failed=st.sampled_from(["keep", "replace", "drop"]),
    stop_groups_below=st.none() | st.just(0.9),
    stop_after=st.integers(1, 2),
    **{name: st.just(seconds) for name, seconds in POLICY.items()},
)


@settings(max_examples=120, deadline=None)
@given(
    world=WORLDS,
    policy=POLICIES,
    calls=st.lists(CALLS, min_size=1, max_size=3),
    concurrency=st.integers(1, 6),
    stop_at=st.none() | st.floats(0, 10),
)
def test_everything_is_accounted_for_and_nothing_stays_behind(world, policy, calls, concurrency, stop_at):
    async def score(trajectory, task):
        fate = world.fate("reward", trajectory.id)
        await world.meet(fate, "reward " + trajectory.id)
        if fate == "RewardError":
            raise RewardError("cannot say")
        return SimpleNamespace(total=float(fate != "no"), components={})

    async def main():
        engine, discarded, taken = Fated(world), [], [[] for _ in calls]
        tool = FatedTool(world)
        loop = asyncio.get_running_loop()
        async with Agent(engine, tools=[tool], limits=Limits(deadline_s=60.0, max_turns=3)) as agent:
            rollout = Rollout(agent, score=score, policy=policy, concurrency=concurrency, on_discard=discarded.append)
            if stop_at is not None:
                loop.call_later(stop_at, rollout.stop)
            makes = [make(rollout, call, n, taken[n]) for n, call in enumerate(calls)]
            outcomes = await asyncio.gather(*makes)
            at = loop.time()
            if "is deaf" not in world.tools and not rollout.tally.abandoned:
                assert asyncio.all_tasks() == {asyncio.current_task()}
            await asyncio.sleep(4 * DEAF_S)  # what was left behind has ended
            assert asyncio.all_tasks() == {asyncio.current_task()}
        return taken, discarded, rollout, outcomes, at, engine

    taken, discarded, rollout, outcomes, at, engine = run_virtually(main())
    tally = rollout.tally
    kept = [t for groups in taken for group in groups for t in group.trajectories]
    everything = kept + discarded
    # Each trajectory that was begun has ended once, with a label, and is in a group or was heard of.
    assert tally.in_flight == 0
    assert tally.finished == len(everything)
    assert len({t.id for t in everything}) == len(everything)
    assert tally.tokens == sum(t.sampled_tokens for t in everything)
    assert tally.tokens_discarded == sum(t.sampled_tokens for t in discarded)
    assert tally.failed == sum(t.failed for t in everything)
    assert all((t.error is not None) == t.failed for t in everything)
    assert tally.cancelled == 0 or {"left", "raised"} & {*outcomes} or any(call.takes for call in calls)
    # Each group too.
    assert tally.groups == sum(map(len, taken))
    lost = tally.groups_surplus + tally.groups_cancelled + tally.groups_unbegun + tally.groups_left
    assert tally.groups + lost == sum(call.plans for call in calls)
    if policy.failed != "drop" and not tally.groups_stopped:
        assert all(len(g.trajectories) == call.members for gs, call in zip(taken, calls, strict=True) for g in gs)
    # And nobody waited for ever, or took more than there was.
    assert at - 1000 < 3 + 20 * 70 * 12
    if not tally.abandoned:
        assert engine.most <= concurrency
    assert rollout._slots.used == 0
    assert not rollout._crew.watchdog.members
