from __future__ import annotations

import pytest
from served import finished_runs
from watched import timeless

from icrl.testing import ScriptedEngine
from icrl.trajectory import Trajectory
from icrl.wire import decode, encode

USES_TOOL = ["<echo> a fox </echo>", "<answer> A fox. </answer>"]


async def test_a_trajectory_is_the_one_that_was_run(serve, service_of):
    client = await serve(USES_TOOL)
    ended = finished_runs(service_of(client))
    response = await client.post("/v1/trajectories", json={"query": "Who?", "n": 2, "seed": 3})
    body = await response.json()
    given = [decode(encode(item), Trajectory) for item in body["data"]]
    assert body["object"] == "list"
    assert sorted(given, key=lambda t: t.id) == sorted(ended, key=lambda t: t.id)
    assert timeless(given[0]) == timeless(given[1])
    assert [s.source for s in given[0].segments] == ["prompt", "prompt", "policy", "tool", "policy"]


async def test_it_samples_as_it_was_asked(serve):
    engine = ScriptedEngine(USES_TOOL)
    client = await serve(engine)
    body = {"query": "Who?", "temperature": 0.5, "top_p": 0.5, "max_tokens": 100, "seed": 7}
    assert (await client.post("/v1/trajectories", json=body)).status == 200
    params = engine.requests[-1].params
    assert (params.temperature, params.top_p) == (0.5, 0.5)
    chat = {"messages": [{"role": "user", "content": "Who?"}], "seed": 7}
    await client.post("/v1/chat/completions", json=chat)
    assert engine.requests[-1].params.seed == params.seed
    assert engine.requests[-2].ids == engine.requests[-4].ids


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"n": 0}, "n"),
        ({"n": 99}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
    ],
)
async def test_a_field_that_is_wrong_is_named(serve, fields, param):
    client = await serve(USES_TOOL)
    response = await client.post("/v1/trajectories", json={"query": "Who?"} | fields)
    assert (response.status, (await response.json())["error"]["param"]) == (400, param)
