"""No token drifts between a trajectory and a real server: its own model, run once over the trajectory, agrees."""

import asyncio
from contextlib import aclosing

import pytest
from drifting import LIMITS, TrapTool, Witness, trajectories_of, verify
from examined import WORDS, full_pass

from icrl.runtime.agent import Agent
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.types import Demonstration, SamplingParams, Step

pytestmark = pytest.mark.sglang

TEMPERATURE = 1.1
DEMONSTRATIONS = [
    Demonstration(
        query=f"What is the {what} of {whom}?",
        steps=(Step(tool="search", arguments={"query": f"{what} of {whom}"}, result=f"The {what} of {whom} is {it}."),),
        answer=it,
    )
    for what, whom, it in (("owner", "Ramax", "Pibun"), ("drink", "Mikor", "beer"))
]


def recomputed(trajectory):
    """Log-probabilities of every token but the first, from one pass over the ids that the trajectory holds."""
    ids = trajectory.ids
    return [0.0, *full_pass(ids[:1], ids[1:], TEMPERATURE)]


async def test_a_full_pass_over_trajectories_gives_the_servers_logprobs(sglang_address):
    async with aclosing(SGLangEngine(sglang_address, tokenizer=WORDS)) as server:
        await server.start()
        engine = Witness(server)
        sampling = SamplingParams(max_tokens=48, temperature=TEMPERATURE)
        agent = Agent(
            engine,
            tools=[TrapTool()],
            dialect="xml",
            limits=LIMITS,
            sampling=sampling,
            demonstrations=DEMONSTRATIONS,
        )
        trajectories = await trajectories_of(agent, 48, name="real", query="What is the price of Benex?")
    for trajectory in trajectories:
        verify(trajectory, engine.exchanges[trajectory.id], scripted=False)
        want = await asyncio.to_thread(recomputed, trajectory)
        got = trajectory.logprobs()
        worst = max(abs(want[i] - got[i]) for i, kept in enumerate(trajectory.mask()) if kept)
        assert worst < 1e-3, f"{trajectory.id}: log-probabilities are {worst:.2g} off"
    assert sum(trajectory.sampled_tokens for trajectory in trajectories) > 48 * 10
    assert sum(len(trajectory.results) for trajectory in trajectories) > 10
