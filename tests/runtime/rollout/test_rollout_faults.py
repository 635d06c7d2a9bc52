"""64 trajectories, 5 % of requests fail, 5 % of tool calls hang and 5 % raise: 64 are accounted for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from held import by_answer
from watched import idle, timeless, tool_call

from icrl.errors import EngineError
from icrl.runtime.agent import Agent
from icrl.runtime.rollout import Plan, Rollout, RolloutPolicy
from icrl.runtime.tools.tool import ToolPolicy
from icrl.seeds import seed_for
from icrl.testing import ByteTokenizer, FaultyTool, ScriptedEngine
from icrl.trajectory import StopReason
from icrl.types import Limits, Task

BYTES = ByteTokenizer()
CALLS = 3


def speak(ids: Sequence[int]) -> str:
    """Ask three times for the question's number, then answer with it."""
    text = BYTES.decode(ids)
    number = re.findall(r"question (\d+)", text)[-1]
    done = text.count("<tool_response>")
    return number if done >= CALLS else tool_call("faulty", text=f"{number}.{done}")


class Failing(ScriptedEngine):
    """Fails a share of its requests, chosen by their names; it spreads the others over some time."""

    share = 0.0

    async def generate(self, ids, params, *, request_id, **options):
        if seed_for(5, request_id) % 1000 < 1000 * self.share:
            raise EngineError("is overloaded", engine="failing", status=500)
        return await super().generate(ids, params, request_id=request_id, **options)


async def roll(*, faults: float, policy: RolloutPolicy, concurrency: int = 48):
    engine = Failing(speak, tokenizer=BYTES)
    engine.share = faults
    tool = FaultyTool(hangs=faults, raises=faults, seed=1, policy=ToolPolicy(timeout_s=60.0))
    plans = [
        Plan(task=Task(query=f"question {i}", answers=(str(i),)), members=8, id=f"0/{i}/", seed=i) for i in range(8)
    ]
    limits = Limits(max_tokens=8000, deadline_s=60.0)
    discarded = []
    async with Agent(engine, dialect="hermes", tools=[tool], limits=limits) as agent:
        rollout = Rollout(agent, score=by_answer, policy=policy, concurrency=concurrency, on_discard=discarded.append)
        groups = await rollout.collect(plans, deadline_s=60.0)
        assert idle(engine)
    assert tool.running == 0
    return groups, rollout.tally, discarded, tool


@pytest.mark.parametrize("failed", ["keep", "drop", "replace"])
async def test_all_are_accounted_for_and_the_unaffected_are_unharmed(failed):
    policy = RolloutPolicy(failed=failed, attempts=10, stall_s=0.4, grace_s=1.0)
    clean, _, _, _ = await roll(faults=0.0, policy=RolloutPolicy())
    groups, tally, discarded, tool = await roll(faults=0.05, policy=policy)
    expected = {t.id: timeless(t) for group in clean for t in group.trajectories}
    assert len(expected) == 64
    assert {t.stop_reason for t in expected.values()} == {StopReason.ANSWER}

    kept = [t for group in groups for t in group.trajectories]
    everything = kept + discarded
    assert tally.started == tally.finished == len(everything)
    # Whoever met no fault is what he was without faults, token by token; whoever did says so.
    first = [t for t in everything if t.id in expected]
    assert len(first) == 64
    unaffected = [t for t in first if not t.stop_reason.failed and not any(r.error for r in t.results)]
    assert all(timeless(t) == expected[t.id] for t in unaffected)
    failures = [t for t in first if t.stop_reason.failed]
    assert {t.error.kind for t in failures} == {"EngineError", "Stalled"}
    raised = [t for t in first if not t.stop_reason.failed and any(r.error == "RuntimeError" for r in t.results)]
    assert all(t.stop_reason is StopReason.ANSWER for t in raised)
    assert len(unaffected) + len(raised) + len(failures) == 64
    assert min(len(unaffected) // 6, len(raised), len(failures)) >= 3
    assert tally.stalled == {"tool faulty": tool.faults.count("hangs")}
    # The step ended because everything had ended, not because its deadline had come.
    assert not any(t.stop_reason is StopReason.DEADLINE for t in everything)

    sizes = [len(group.trajectories) for group in groups]
    if failed == "drop":
        assert sum(sizes) == 64 - len(failures) == 64 - tally.dropped
    else:
        assert sizes == [8] * 8
    if failed == "replace":
        assert tally.replaced == len(discarded) >= len(failures)
        assert not any(t.stop_reason.failed for t in kept)
    else:
        assert tally.failed == len(failures)
