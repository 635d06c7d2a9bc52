"""What the server tells about the engines behind it."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import ask
from watched import until

from icrl.runtime.agent import Agent
from icrl.runtime.engines.pool import EnginePool, PoolConfig
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.runtime.engines.sglang.usage import ServerUsage
from icrl.serve import engines
from icrl.serve.keys import SERVICE
from icrl.testing import ByteTokenizer, SGLangStub

QUICK = PoolConfig(probe_every_s=0.05, probe_timeout_s=0.5)
ANSWER = "<answer> yes </answer>"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Everything is asked anew."""
    monkeypatch.setattr(engines, "FRESH_S", 0.0)


def over(*stubs, **client):
    """Make agents on pools of servers."""
    servers = [stub.address for stub in stubs]
    return lambda: Agent(
        EnginePool([SGLangEngine(address, tokenizer=ByteTokenizer(), **client) for address in servers], config=QUICK),
        tools=[],
    )


async def shown(client):
    """Return the engines' samples by name and engine."""
    async with client.get("/metrics") as response:
        assert response.status == 200
        text = await response.text()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {
        (s.name.removeprefix("icrl_engine_"), s.labels["engine"]): s.value for s in samples if "engine" in s.labels
    }
    assert len(found) == sum("engine" in sample.labels for sample in samples)
    ready = next(sample.value for sample in samples if sample.name == "icrl_ready")
    return found, ready


async def told(client, path):
    async with client.get(path) as response:
        return response.status, await response.json()


async def test_every_engine_is_shown_by_its_address_and_one_that_dies_as_down(serve):
    async with SGLangStub(lambda ids: ANSWER) as one, SGLangStub(lambda ids: ANSWER, metrics=False) as two:
        client = await serve(over(one, two))
        for _ in range(3):
            async with client.post("/v1/chat/completions", json=ask("hi")) as response:
                assert response.status == 200
        now, ready = await shown(client)
        assert ready == 1
        requests = [asked for asked in one.requests if asked.reason]
        assert now["generated_tokens_total", one.address] == sum(len(asked.sampled) for asked in requests)
        assert now["prompt_tokens_total", one.address] == sum(len(asked.ids) for asked in requests)
        for name in ("up", "used"):
            assert now[name, one.address] == now[name, two.address] == 1
        for name in ("running", "waiting", "kv_usage"):
            assert now[name, one.address] == now[name, two.address] == 0
        assert not [name for name, engine in now if engine == two.address and name.endswith("_total")]
        assert await told(client, "/health") == (200, {"status": "ready", "engines": {"used": 2, "all": 2}})

        one.kill()
        await until(lambda: used(client) == 1)
        now, ready = await shown(client)
        assert {name: value for (name, engine), value in now.items() if engine == one.address} == {"up": 0, "used": 0}
        assert (now["up", two.address], ready) == (1, 1)
        assert await told(client, "/ready") == (200, {"status": "ready", "engines": {"used": 1, "all": 2}})

        two.kill()
        await until(lambda: used(client) == 0)
        assert await told(client, "/health") == (200, {"status": "ready", "engines": {"used": 0, "all": 2}})
        assert await told(client, "/ready") == (503, {"status": "no_engine", "engines": {"used": 0, "all": 2}})
        assert (await shown(client))[1] == 0
        await two.restart()
        await until(lambda: used(client) == 1)
        assert (await told(client, "/ready"))[0] == 200


def used(client):
    return engines.engines_of(client.server.app[SERVICE]).used


async def test_a_model_in_this_process_has_no_engines(serve):
    client = await serve([ANSWER])
    assert await shown(client) == ({}, 1)
    assert await told(client, "/health") == (200, {"status": "ready"})


async def test_an_engine_that_hangs_neither_fails_nor_holds_a_scrape(serve, monkeypatch):
    async with SGLangStub(lambda ids: ANSWER) as stub:
        client = await serve(lambda: Agent(SGLangEngine(stub.address, tokenizer=ByteTokenizer()), tools=[]))
        assert (await shown(client))[0]["up", stub.address] == 1
        monkeypatch.setattr(engines, "ANSWER_S", 0.1)
        monkeypatch.setattr(stub, "_control", lambda http: asyncio.Event().wait())
        started = time.monotonic()
        scrapes = await asyncio.gather(*(shown(client) for _ in range(5)))
        assert time.monotonic() - started < 5.0
        assert [found["up", stub.address] for found, _ in scrapes] == [0] * 5


async def test_what_was_said_is_repeated_for_a_while_and_asked_once_by_many(serve, monkeypatch):
    monkeypatch.setattr(engines, "FRESH_S", 60.0)
    async with SGLangStub(lambda ids: ANSWER) as stub:
        client = await serve(lambda: Agent(SGLangEngine(stub.address, tokenizer=ByteTokenizer()), tools=[]))
        await asyncio.gather(*(shown(client) for _ in range(5)))
        stub.kill()
        assert (await shown(client))[0]["up", stub.address] == 1
        assert stub.calls.count("/metrics") == 1


async def test_labels_hold_no_secrets(serve):
    async with SGLangStub(lambda ids: ANSWER, api_key="s3cret") as stub:
        client = await serve(over(stub, api_key="s3cret"))
        async with client.get("/metrics") as response:
            text = await response.text()
    assert f'icrl_engine_up{{engine="{stub.address}"}} 1.0' in text
    assert "s3cret" not in text
    assert engines._label("https://me:s3cret@host:1/path") == "https://host:1"


async def test_engines_behind_one_gateway_are_all_shown():
    gate = ["http://gate/a", "http://gate/b"]
    engine = SimpleNamespace(usage=None)

    async def usage(*, timeout_s=None):
        return tuple(ServerUsage(address=address, load=None, counters=None) for address in gate)

    engine.usage = usage
    service = SimpleNamespace(agent=Told(engine))
    watch = engines.EngineWatch(service)
    await watch.refresh()
    up = next(metric for metric in watch.collect() if metric.name == "icrl_engine_up")
    assert [sample.labels["engine"] for sample in up.samples] == ["http://gate", "http://gate#2"]


class Told:
    def __init__(self, engine):
        self.model = SimpleNamespace(engine=engine)
