from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession
from served import Brittle, ask, events_of, joined
from watched import until

from icrl.errors import ConfigError, EngineError
from icrl.runtime.agent import Agent
from icrl.runtime.store import read_trajectories
from icrl.serve.backlog import LineWriter
from icrl.serve.config import AdmissionConfig, ServeConfig
from icrl.serve.server import running
from icrl.testing import EchoTool, HangingTool, ScriptedEngine

ANSWER = "<answer> yes </answer>"
HANG = "<hang> <text>x</text> </hang>"


@asynccontextmanager
async def serving(open_agent, lines=None, **config):
    """Yields the server and a client of it."""
    settings = ServeConfig(**{"port": 0, **config})
    async with running(settings, open_agent, lines) as server, ClientSession(server.address) as client:
        await server.loading
        yield server, client


def opener(replies, *tools, **engine):
    return lambda: Agent(ScriptedEngine(replies, **engine), tools=tools or [EchoTool()])


async def test_a_server_leaves_nothing_behind(no_key):
    async with serving(opener([ANSWER])) as (server, client):
        async with client.post("/v1/responses", json={"input": "hi"}) as response:
            assert response.status == 200
        address = server.address
    assert asyncio.all_tasks() == {asyncio.current_task()}
    async with ClientSession() as client:
        with pytest.raises(OSError, match="Cannot connect"):
            await client.get(address)


async def test_a_model_that_cannot_be_opened_says_so(no_key):
    async with running(ServeConfig(port=0), opener([])) as server:
        with pytest.raises(ConfigError, match="model: does not answer"):
            await server.loading
        async with (
            ClientSession(server.address) as client,
            client.get("/health") as health,
            client.get("/ready") as ready,
        ):
            assert (health.status, ready.status) == (200, 503)


async def test_a_client_that_vanishes_frees_tool_and_engine_at_once(no_key):
    tool = HangingTool()
    engine = ScriptedEngine([HANG])
    async with serving(lambda: Agent(engine, tools=[tool])) as (server, client):
        for stream in (False, True):
            calls = len(tool.calls)
            asking = asyncio.create_task(told(client, stream=stream))
            await until(lambda calls=calls: len(tool.calls) > calls)
            asking.cancel()
            gone = time.monotonic()
            await until(lambda calls=calls: tool.cancellations > calls)
            assert time.monotonic() - gone < 0.5  # 0.1 s on a machine with nothing else to do
            await until(lambda: not server.service.running)
    slow = ScriptedEngine(lambda ids: "w " * 50)
    async with serving(lambda: Agent(slow, tools=[])) as (server, client):
        slow._latency_s = 60.0
        asking = asyncio.create_task(told(client, stream=True))
        await until(lambda: slow._live)
        asking.cancel()
        await until(lambda: not slow._live and not server.service.running)


async def told(client, *, stream=True):
    async with client.post("/v1/chat/completions", json=ask(stream=stream)) as response:
        return joined(await events_of(response)) if stream else await response.json()


async def test_an_engine_that_dies_ends_the_stream_with_an_error_and_not_the_server(no_key):
    engine = Brittle(["<answer> one two three </answer>"], EngineError("at 10.0.0.7", engine="brittle"), after=14)
    async with serving(lambda: Agent(engine, tools=[])) as (_, client):
        engine.broken = True
        async with client.post("/v1/chat/completions", json=ask(stream=True)) as response:
            chat = await events_of(response)
        async with client.post("/v1/responses", json={"input": "hi", "stream": True}) as response:
            native = await events_of(response)
        assert chat[-2].data["error"]["code"] == "engine_error"
        assert chat[-1].data == "[DONE]"
        assert native[-1].event == "response.failed"
        assert "10.0.0.7" not in str(chat) + str(native)
        async with client.get("/ready") as response:
            assert response.status == 200


async def test_a_thousand_streams_in_small(no_key):
    words = " ".join(f"w{i}" for i in range(40))
    wide = AdmissionConfig(max_running=100, max_per_key=100)
    async with serving(opener([f"<answer> {words} </answer>"], latency_s=0.2), admission=wide) as (server, client):
        answers = await asyncio.gather(*(told(client) for _ in range(80)))
        assert [answer["content"] for answer in answers] == [words] * 80
        await until(lambda: not server.service.running and not server.service.live)
        mine = {task for task in asyncio.all_tasks() if "icrl" in repr(task.get_coro())}
        assert not [task for task in mine if "execute" in repr(task)]


async def test_reloading_by_request(no_key):
    replies = [ANSWER]
    tools = []

    def open_agent():
        tools.append(EchoTool())
        return Agent(ScriptedEngine(list(replies)), tools=[tools[-1]])

    async with serving(open_agent) as (server, client):
        async with client.post("/admin/reload") as response:
            assert (response.status, await response.json()) == (200, {"status": "ready", "reloads": 1})
        await until(lambda: tools[0].closed)
        replies.clear()
        async with client.post("/admin/reload") as response:
            assert response.status == 409
            error = (await response.json())["error"]
            assert error["code"] == "reload_failed"
            assert error["message"].startswith("the old model stays: model: does not answer")
        replies.append(ANSWER)
        assert (await told(client))["content"] == "yes"
        await server.service.drain(1.0)
        async with client.post("/admin/reload") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "not_ready")
    assert [tool.closed for tool in tools] == [1] * 3


async def test_reloading_needs_the_key_where_there_is_one(no_key, tmp_path):
    (tmp_path / "keys").write_text("right\n")
    async with serving(opener([ANSWER]), api_key_file=tmp_path / "keys") as (server, client):
        for key, status in (("wrong", 401), ("right", 200)):
            async with client.post("/admin/reload", headers={"Authorization": f"Bearer {key}"}) as response:
                assert response.status == status
        assert server.service.reloads == 1


async def test_trajectories_are_written_down_where_wanted(no_key, tmp_path):
    path = tmp_path / "served.jsonl"
    async with serving(opener([ANSWER]), log_trajectories=path) as (_, client):
        answer = await told(client)
    (kept,) = await asyncio.to_thread(lambda: list(read_trajectories(path)))
    assert (kept.id, kept.answer) == (answer["icrl"]["trajectory_id"], "yes")


async def test_lost_lines_are_in_the_metrics(no_key):
    lines = LineWriter(fd=-1)
    async with serving(opener([ANSWER]), lines) as (_, client):
        for _ in range(100):
            async with client.get("/metrics") as response:
                text = await response.text()
            if "icrl_log_dropped 0.0" not in text:
                break
        assert "icrl_log_dropped" in text
        assert "icrl_log_dropped 0.0" not in text
    await asyncio.to_thread(lines.close)


async def test_it_listens_on_addresses_of_both_kinds(no_key):
    if not socket.has_ipv6:
        pytest.skip("this machine knows no IPv6")
    async with serving(opener([ANSWER]), host="::1", name="mine") as (server, client):
        assert server.address.startswith("http://[::1]:")
        async with client.get("/v1/models") as response:
            assert (await response.json())["data"][0]["id"] == "mine"


async def test_a_port_that_is_taken_is_refused_with_one_that_is_free(no_key):
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as taken:
            taken.bind((host, 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(
                ConfigError, match=r"\(Address already in use\)\. Port \d+ is free: --port \d+"
            ) as refused:
                async with running(ServeConfig(host=host, port=port), opener([ANSWER])):
                    pass
            free = int(str(refused.value).rpartition(" ")[2])
            with socket.socket(family) as probe:
                probe.bind((host, free))


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
