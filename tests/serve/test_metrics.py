from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import Brittle, ask, events_of
from watched import until

from icrl.errors import EngineError
from icrl.runtime.agent import Agent
from icrl.runtime.tools.cache import ToolCache
from icrl.runtime.tools.tool import ToolPolicy
from icrl.runtime.tools.toolbox import Toolbox
from icrl.serve.config import AdmissionConfig
from icrl.testing import EchoTool, FailingTool, HangingTool, ScriptedEngine

CALL, ANSWER = "<echo> <text>hi</text> </echo>", "<answer> yes </answer>"


class Shown:
    """What `/metrics` said."""

    def __init__(self, text):
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name, **labels):
        """Return the value of one sample; 0 where there is none."""
        values = [sample.value for sample in self.samples if (sample.name, sample.labels) == (name, labels)]
        return values[0] if values else 0.0


async def shown(client):
    async with client.get("/metrics") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        return Shown(await response.text())


async def test_known_traffic_gives_known_numbers(serve):
    client = await serve([CALL, ANSWER])
    before = await shown(client)
    assert before("icrl_ready") == 1
    assert before("icrl_stops_total", reason="answer") == 0  # the warm-up is no traffic
    for stream in (False, True):
        async with client.post("/v1/chat/completions", json=ask("hi", stream=stream)) as response:
            await (events_of(response) if stream else response.read())
    async with client.post("/v1/responses", json={"input": ""}) as response:
        assert response.status == 400
    now = await shown(client)
    chat = "/v1/chat/completions"
    assert now("icrl_requests_total", route=chat, status="200") == 2
    assert now("icrl_requests_total", route="/v1/responses", status="400") == 1
    assert now("icrl_request_seconds_count", route=chat) == 2
    assert now("icrl_first_token_seconds_count") == 2
    assert now("icrl_token_seconds_count") == 4  # turns
    assert now("icrl_tool_seconds_count", tool="echo") == 2
    assert now("icrl_tool_calls_total", tool="echo", outcome="ok") == 2
    assert now("icrl_tool_runs_total", tool="echo") == 2
    assert now("icrl_stops_total", reason="answer") == 2
    assert now("icrl_tokens_total", kind="sampled") == 2 * (len(CALL) + len(ANSWER))  # a token is a byte
    assert now("icrl_tokens_total", kind="prompt") > now("icrl_tokens_total", kind="sampled")
    assert now("icrl_tokens_total", kind="observed") > 0
    for gauge in ("icrl_requests_in_flight", "icrl_requests_waiting", "icrl_runs_in_flight", "icrl_reloads"):
        assert now(gauge) == 0


async def test_what_goes_on_is_counted_while_it_does(serve):
    tool = HangingTool()
    client = await serve(
        ["<hang> <text>x</text> </hang>"], agent={"tools": [tool]}, admission=AdmissionConfig(max_running=1)
    )
    asked = [asyncio.create_task(client.post("/v1/chat/completions", json=ask())) for _ in range(3)]
    await until(lambda: tool.calls)
    for _ in range(100):
        now = await shown(client)
        if now("icrl_requests_in_flight") == 3:
            break
    assert (now("icrl_requests_in_flight"), now("icrl_requests_waiting"), now("icrl_runs_in_flight")) == (3, 2, 1)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    for _ in range(100):
        now = await shown(client)
        if now("icrl_requests_total", route="/v1/chat/completions", status="disconnected") == 3:
            break
    assert (now("icrl_requests_in_flight"), now("icrl_requests_waiting"), now("icrl_runs_in_flight")) == (0, 0, 0)
    assert now("icrl_stops_total", reason="aborted") == 1
    assert now("icrl_tool_cancelled_total", tool="hang") == 1


async def test_failures_are_counted_as_what_they_are(serve):
    client = await serve(["<fail> <text>x</text> </fail>", ANSWER], agent={"tools": [FailingTool()]})
    async with client.post("/v1/chat/completions", json=ask()) as response:
        assert response.status == 200
    now = await shown(client)
    assert now("icrl_tool_calls_total", tool="fail", outcome="error") == 1
    broken = Brittle([ANSWER], EngineError("the machine is gone", engine="brittle"), after=3)
    client = await serve(broken)
    broken.broken = True
    async with client.post("/v1/chat/completions", json=ask()) as response:
        assert response.status == 502
    now = await shown(client)
    assert now("icrl_stops_total", reason="error") == 1
    assert now("icrl_requests_total", route="/v1/chat/completions", status="502") == 1


async def test_answers_from_the_cache_are_counted(serve, tmp_path):
    def open_agent():
        policy = ToolPolicy(repeatable=True)
        tool = EchoTool(policy=policy, fingerprint="echo")
        return Agent(ScriptedEngine([CALL, ANSWER]), tools=Toolbox([tool], cache=ToolCache()))

    client = await serve(open_agent)
    for _ in range(3):
        async with client.post("/v1/chat/completions", json=ask()) as response:
            await response.read()
    now = await shown(client)
    assert now("icrl_tool_calls_total", tool="echo", outcome="ok") == 3
    assert (now("icrl_tool_runs_total", tool="echo"), now("icrl_tool_cache_hits_total", tool="echo")) == (1, 2)


@pytest.mark.parametrize("path", ["/x", "/v1/x", "/v1/models/", "/v1/responses/"])
async def test_labels_are_not_for_clients_to_choose(serve, path):
    client = await serve([CALL, ANSWER])
    for i in range(50):
        async with client.get(f"{path}{i}") as response:
            await response.read()
        async with client.request(f"M{i}", f"{path}{i}") as response:
            await response.read()
        async with client.get("/health", headers={"Host": f"host{i}"}) as response:
            await response.read()
    now = await shown(client)
    routes = {sample.labels["route"] for sample in now.samples if "route" in sample.labels}
    assert routes <= {
        *("unknown", "/health", "/metrics", "/v1/models", "/v1/models/{model}"),
        *("/v1/responses/{id}", "/v1/responses"),
    }
    assert len(now.samples) < 200


async def test_labels_are_not_for_models_to_choose(serve):
    engine = ScriptedEngine([f'<tool_call>{{"name": "tool{i}", "arguments": {{}}}}</tool_call>' for i in range(8)])
    client = await serve(engine, agent={"tools": [EchoTool()], "dialect": "hermes"})
    async with client.post("/v1/chat/completions", json=ask()) as response:
        await response.read()
    now = await shown(client)
    assert {s.labels["tool"] for s in now.samples if "tool" in s.labels} == {"echo", "unknown"}
    assert now("icrl_tool_calls_total", tool="unknown", outcome="error") >= 4


async def test_there_are_no_other_families(serve):
    client = await serve([ANSWER])
    now = await shown(client)
    assert {name for name in now.families if not name.endswith("_created")} == {
        *("icrl_requests", "icrl_request_seconds", "icrl_first_token_seconds", "icrl_token_seconds"),
        *("icrl_tool_seconds", "icrl_tool_calls", "icrl_tool_runs", "icrl_tool_cache_hits", "icrl_tool_shared"),
        *("icrl_tool_retries", "icrl_tool_cancelled", "icrl_tool_wait_seconds", "icrl_tokens", "icrl_stops"),
        *("icrl_requests_in_flight", "icrl_requests_waiting", "icrl_runs_in_flight", "icrl_reloads", "icrl_ready"),
        *(f"icrl_engine_{name}" for name in ("up", "used", "running", "waiting", "kv_usage", "cache_hit_rate")),
        *(f"icrl_engine_{name}_tokens" for name in ("generated", "prompt", "cached")),
        *(f"icrl_engine_{name}_requests" for name in ("aborted", "retracted")),
    }
