"""One loop: whoever asks the embedded model, and however, the very same tokens come out."""

from __future__ import annotations

import asyncio

from served import ask, finished_runs

from icrl.commands.shots import take_shots
from icrl.runtime.agent import Agent
from icrl.tiny import DEMONSTRATIONS
from icrl.train.evaluate import evaluate
from icrl.trajectory import StopReason, Trajectory
from icrl.types import SamplingParams, Task
from icrl.wire import decode, encode

QUESTION = "What is the port of Lirux?"
GREEDY = SamplingParams(temperature=0.0)
SHOTS = take_shots(DEMONSTRATIONS, 3)


def agent() -> Agent:
    """The embedded base, which uses its tool once it is shown how."""
    return Agent(sampling=GREEDY, demonstrations=SHOTS)


async def test_run_evaluation_and_both_protocols_sample_the_same_tokens(serve, service_of, cache_home):
    async with agent() as own:
        run = (await own.run(QUESTION)).trajectory
        task = Task(query=QUESTION, answers=("Puren",))
        result, (group,) = await evaluate(own, [task], demonstrations=SHOTS, sampling=GREEDY)
        seeded = await own.start(QUESTION, seed=7, sampling=SamplingParams(temperature=1.0)).execute()
    assert (run.stop_reason, len(run.calls), result.calls) == (StopReason.ANSWER, 1, 1.0)
    assert group.trajectories[0].ids == run.ids
    client = await serve(agent)
    ended = finished_runs(service_of(client))

    response = await (await client.post("/v1/responses", json={"input": QUESTION, "temperature": 0})).json()
    view = await (await client.get(f"/v1/responses/{response['id']}/tokens")).json()
    assert tuple(token["id"] for segment in view["segments"] for token in segment["tokens"]) == run.ids

    completion = await (await client.post("/v1/chat/completions", json=ask(QUESTION, temperature=0))).json()
    assert completion["choices"][0]["message"]["content"] == run.answer

    body = {"query": QUESTION, "temperature": 0}
    (raw,) = (await (await client.post("/v1/trajectories", json=body)).json())["data"]
    assert decode(encode(raw), Trajectory).segments == ended[-1].segments
    assert [trajectory.ids for trajectory in ended] == [run.ids] * 3
    assert [trajectory.logprobs() for trajectory in ended] == [run.logprobs()] * 3

    for path, body in (
        ("/v1/responses", {"input": QUESTION, "seed": 7}),
        ("/v1/chat/completions", ask(QUESTION, seed=7)),
    ):
        response = await client.post(path, json=body | {"stream": True})
        await asyncio.wait_for(response.read(), 30)
        assert ended[-1].ids == seeded.ids
