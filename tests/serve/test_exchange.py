"""What happens to runs when their client goes away, their engine breaks, or their tools take long."""

from __future__ import annotations

import asyncio

import pytest
from served import Brittle, ask, events_of, joined, sent
from watched import until

from icrl.errors import EngineError
from icrl.events import Event
from icrl.runtime.agent import Agent
from icrl.serve.ask import Ask
from icrl.serve.config import AdmissionConfig
from icrl.serve.exchange import Exchange
from icrl.serve.service import Service
from icrl.testing import EchoTool, HangingTool, ScriptedEngine
from icrl.trajectory import StopReason
from icrl.types import Message

PATHS = [("/v1/chat/completions", ask()), ("/v1/responses", {"input": "Who?"}), ("/v1/trajectories", {"query": "Who?"})]
STREAMS = PATHS[:2]
HANGS = ["<think> hm </think><hang> x </hang>"]


@pytest.fixture
async def service():
    """A service whose model calls a tool that never answers."""
    tool, engine = HangingTool(), ScriptedEngine(HANGS)
    service = Service(lambda: Agent(engine, tools=[tool]), AdmissionConfig())
    await service.start()
    yield service, tool
    await service.aclose()


WHO = Ask(messages=(Message(role="user", content="Who?"),))


async def test_leaving_ends_the_runs_and_their_tools(service):
    service, tool = service
    async with service.admitted("me") as lease:
        async with Exchange(lease, WHO, choices=2) as exchange:
            await until(lambda: len(tool.calls) == 2)
            assert len(service.live) == 2
        assert (tool.cancellations, service.live) == (2, {})
        with pytest.raises(asyncio.CancelledError):
            await exchange.trajectories()
    assert service.running == 0


async def test_what_is_heard_comes_in_order_and_ends(service):
    service, _ = service
    async with service.admitted("me") as lease, Exchange(lease, WHO) as exchange:
        heard: list[str] = []
        async for batch in exchange.told(heartbeat_s=60.0):
            heard += [f"{told.choice} {told.heard.kind}" for told in batch]
            if "0 call" in heard:
                exchange.runs[0].stop()
        (trajectory,) = await exchange.trajectories()
    assert list(dict.fromkeys(heard)) == ["0 thought", "0 turn", "0 call", "0 stopped"]
    assert trajectory.stop_reason is StopReason.ABORTED


async def test_being_cancelled_while_it_ends_cancels_nothing_twice(service):
    service, tool = service
    tool.swallows = 1

    async def work():
        async with service.admitted("me") as lease, Exchange(lease, WHO):
            await asyncio.Event().wait()

    working = asyncio.ensure_future(work())
    await until(lambda: tool.calls)
    working.cancel()
    await asyncio.sleep(0.01)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert service.running == 0
    await until(lambda: not service.live)


@pytest.mark.parametrize(("path", "body"), [*PATHS, *((path, body | {"stream": True}) for path, body in STREAMS)])
async def test_a_client_that_goes_away_takes_its_tool_and_engine_along(serve, service_of, path, body):
    tool = HangingTool()
    client = await serve(HANGS, agent={"tools": [tool]})
    asking = asyncio.ensure_future(client.post(path, json=body))
    await until(lambda: tool.calls)
    loop = asyncio.get_running_loop()
    if "stream" in body:
        (await asking).close()
    else:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    left = loop.time()
    service = service_of(client)
    await until(lambda: tool.cancellations and not service.live and not service.running)
    assert loop.time() - left < 1.0, "a tenth of that on an idle machine"


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_a_client_that_goes_away_while_the_model_speaks_ends_the_engines_work(serve, path, body):
    engine = ScriptedEngine(["<answer>" + " word" * 1000])
    client = await serve(engine)
    engine._latency_s = 50.0  # a hundredth of a second a token, once it has answered its warm-up
    response = await client.post(path, json=body | {"stream": True})
    await until(lambda: engine.live)
    response.close()
    await until(lambda: not engine.live)


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_heartbeats_while_a_tool_works(serve, path, body):
    client = await serve(
        ["<echo> x </echo>", "<answer> x </answer>"], agent={"tools": [EchoTool(latency_s=0.6)]}, heartbeat_s=0.03
    )
    response = await client.post(path, json=body | {"stream": True})
    events = [event async for event in sent(response)]
    silences = [i for i, event in enumerate(events) if event.data is None]
    assert 2 <= len(silences) <= 24
    assert silences == list(range(silences[0], silences[-1] + 1)), "only while nothing else is told"


ENGINE_BREAKS = EngineError("http://10.0.0.1 refused", engine="remote")


@pytest.fixture(params=[ENGINE_BREAKS, RuntimeError("a bug at 10.0.0.1")], ids=["engine", "bug"])
async def brittle(request, serve):
    """A server whose engine breaks in the middle of an answer."""
    engine = Brittle(["<answer> one two"], request.param, after=12)
    client = await serve(engine)
    engine.broken = True
    return client, engine


async def healthy(client, engine):
    engine.broken = False
    response = await client.post("/v1/chat/completions", json=ask())
    return response.status == 200 and (await (await client.get("/ready")).json())["status"] == "ready"


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_an_engine_that_breaks_is_told_as_an_error(brittle, path, body):
    client, engine = brittle
    response = await client.post(path, json=body)
    text = await response.text()
    error = (await response.json())["error"]
    assert response.status in (500, 502)
    assert error["type"] == "server_error"
    assert "10.0.0.1" not in text
    assert await healthy(client, engine)


async def test_an_engine_that_breaks_mid_stream_ends_a_chat_with_an_error(brittle):
    client, engine = brittle
    events = await events_of(await client.post("/v1/chat/completions", json=ask(stream=True)))
    assert joined(events[:-2] + events[-1:])["content"] == "one"
    error = events[-2].data["error"]
    assert (error["type"], error["code"]) == ("server_error", "engine_error")
    assert "10.0.0.1" not in str(events)
    assert await healthy(client, engine)


async def test_an_engine_that_breaks_mid_stream_fails_a_response(brittle):
    client, engine = brittle
    events = await events_of(await client.post("/v1/responses", json={"input": "Who?", "stream": True}))
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1].event == "response.failed"
    response = events[-1].data["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert "10.0.0.1" not in str(events)
    assert await healthy(client, engine)


async def test_a_trajectory_says_that_it_broke_but_not_where(serve):
    engine = Brittle(["<answer> one two"], ENGINE_BREAKS, after=12)
    client = await serve(engine)
    engine.broken = True
    response = await client.post("/v1/trajectories", json={"query": "Who?"})
    (trajectory,) = (await response.json())["data"]
    assert trajectory["stop_reason"] == "error"
    assert trajectory["error"] == {"kind": "EngineError", "message": "the engine failed while answering"}


async def test_a_watcher_hears_what_the_client_hears(service):
    service, tool = service
    heard: list[Event] = []
    service.watchers.append(lambda run_id: heard.append)
    async with service.admitted("me") as lease, Exchange(lease, WHO):
        await until(lambda: tool.calls)
    assert heard[0].kind == "run_started"
    assert heard[-1].kind == "run_stopped"
