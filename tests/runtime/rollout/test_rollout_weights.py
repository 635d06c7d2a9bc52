"""A weight update in the middle of a rollout ends nothing; every token says which weights sampled it."""

from __future__ import annotations

import asyncio

from held import by_answer, plan_of
from watched import idle, until

from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Rollout
from icrl.testing import EchoTool, ScriptedEngine
from icrl.trajectory import StopReason, VersionSpan


class Watching(ScriptedEngine):
    """Says how many tokens it has spoken."""

    said = 0

    async def generate(self, *args, **options):
        def heard(ids):
            self.said += len(ids)

        return await super().generate(*args, **{**options, "on_delta": heard})


async def test_partial_rollouts_survive_a_weight_update():
    engine = Watching(lambda ids: "<answer> yes </answer>", latency_s=0.2, weight_version=3)
    async with Agent(engine) as agent:
        rollout = Rollout(agent, score=by_answer)
        collecting = asyncio.create_task(rollout.collect([plan_of("a", members=4)]))
        await until(lambda: engine.said >= 12)
        await engine.pause("in_place")
        await engine.update([], version=4)
        said = engine.said
        await engine.resume()
        (group,) = await collecting
    assert group.rewards == (1.0,) * 4
    spans = [t.response[0].versions for t in group.trajectories]
    assert all([span.version for span in each] == [3, 4] for each in spans)
    assert sum(old.end - old.start for old, _ in spans) == said
    assert all(
        (old.start, old.end, new.end) == (0, new.start, t.sampled_tokens)
        for (old, new), t in zip(spans, group.trajectories, strict=True)
    )
    assert all(t.versions() == (3, 4) for t in group.trajectories)
    assert idle(engine)


async def test_turns_before_and_after_an_update_differ_in_their_version():
    tool = EchoTool()
    engine = ScriptedEngine(["<echo> x </echo>", "<answer> yes </answer>"])
    update = asyncio.Event()

    class Waiting(EchoTool):
        async def __call__(self, arguments):
            await update.wait()
            return await tool(arguments)

    async with Agent(engine, tools=[Waiting()]) as agent:
        collecting = asyncio.create_task(Rollout(agent, score=by_answer).collect([plan_of("a", members=1)]))
        await until(lambda: len(engine.requests) == 1 and not engine.live)
        await engine.pause("in_place")
        await engine.update([], version=1)
        await engine.resume()
        update.set()
        (group,) = await collecting
    sampled = [s.versions for s in group.trajectories[0].segments if s.source == "policy"]
    assert [[span.version for span in spans] for spans in sampled] == [[0], [1]]
    assert all(spans == (VersionSpan(version=spans[0].version, start=0, end=spans[0].end),) for spans in sampled)


async def test_an_update_that_aborts_leaves_labelled_partials():
    engine = Watching(lambda ids: "<answer> yes </answer>", latency_s=0.2)
    async with Agent(engine) as agent:
        collecting = asyncio.create_task(Rollout(agent, score=by_answer).collect([plan_of("a", members=2)]))
        await until(lambda: engine.said >= 6)
        await engine.pause("abort")
        await engine.update([], version=1)
        await engine.resume()
        (group,) = await collecting
    assert [t.stop_reason for t in group.trajectories] == [StopReason.ABORTED] * 2
    assert all(t.versions() == (0, 0) and 0 < t.sampled_tokens < 20 for t in group.trajectories)
