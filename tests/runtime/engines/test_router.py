from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer

from icrl.errors import ConfigError, EngineError
from icrl.runtime.engines.address import connect, is_address, name_of
from icrl.runtime.engines.pool import PoolConfig
from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.runtime.engines.sglang.router import RouterClient
from icrl.runtime.engines.sglang.versions import UNTOUCHED, Versions
from icrl.testing import ByteTokenizer, Capacity, SGLangStub
from icrl.trajectory import VersionSpan
from icrl.types import SamplingParams

PROMPT = tuple(b"prompt:")
NAME = Versions(UNTOUCHED).name
TEXT = "The quick brown fox jumps over the lazy dog. " * 3
QUICK = PoolConfig(give_up_s=10.0, first_wait_s=0.005, longest_wait_s=0.05, probe_every_s=0.05)


def rest(ids):
    return TEXT[len(ids) - len(PROMPT) :]


class Router:
    """Hands requests out in turn, and knows nothing else, as the real one."""

    def __init__(self, stubs):
        self.urls = [stub.address for stub in stubs]
        self.down = set()
        self.turns = 0
        self.address = ""

    async def workers(self, request):
        listed = [
            {"id": str(i), "url": url + "/", "is_healthy": url not in self.down} for i, url in enumerate(self.urls)
        ]
        return web.json_response({"workers": listed, "total": len(listed)})

    async def generate(self, request):
        self.turns += 1
        healthy = [url for url in self.urls if url not in self.down]
        url = healthy[self.turns % len(healthy)]
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.post(f"{url}/generate", data=await request.read()) as reply,
        ):
            out = web.StreamResponse(status=reply.status, headers={"Content-Type": reply.content_type})
            await out.prepare(request)
            async for chunk in reply.content.iter_any():
                await out.write(chunk)
            return out


@asynccontextmanager
async def routed(count=2, *, pool=QUICK, **options):
    """Yield a pool over a router, the router, and the servers behind it."""
    stubs = [SGLangStub(rest, **options) for _ in range(count)]
    for stub in stubs:
        await stub.start()
    router = Router(stubs)
    app = web.Application()
    app.router.add_get("/workers", router.workers)
    app.router.add_post("/generate", router.generate)
    try:
        async with TestServer(app) as server:
            router.address = str(server.make_url("")).rstrip("/")
            engine = SGLangConfig(stream_from=1, chunk_tokens=4, abort_s=2.0)
            connected, _ = await connect(
                f"router:{router.address}", tokenizer=ByteTokenizer(), pool=pool, engine=engine
            )
            try:
                yield connected, router, stubs
            finally:
                await connected.aclose()
    finally:
        for stub in stubs:
            await stub.aclose()


async def ask(pool, name="r", **options):
    return await pool.generate(PROMPT, SamplingParams(max_tokens=400), request_id=name, session=name, **options)


async def push(pool, version):
    await pool.pause("in_place")
    try:
        await pool.update([("w", torch.full((2,), float(version)))], version)
    finally:
        await pool.resume()


async def test_requests_go_through_the_router_and_weights_to_every_server():
    async with routed() as (pool, router, stubs):
        assert pool.info.name == router.address
        for reply in await asyncio.gather(*(ask(pool, f"{i}") for i in range(6))):
            assert bytes(reply.ids[:-1]).decode() == TEXT
        assert [len(stub.requests) for stub in stubs] == [3, 3]
        await push(pool, 3)
        assert [stub.weight_version for stub in stubs] == [NAME(3)] * 2
        reply = await ask(pool)
        assert reply.versions == (VersionSpan(version=3, start=0, end=len(reply.ids)),)
        assert (await pool.probe()).running == 0


async def test_an_abort_reaches_the_server_wherever_it_is():
    async with routed(capacity=Capacity(tokens_per_s_per_request=100.0)) as (pool, _, stubs):
        told = asyncio.Event()
        asking = asyncio.create_task(ask(pool, on_delta=lambda ids: told.set()))
        await told.wait()
        await pool.abort("r")
        reply = await asking
        assert reply.finish_reason == "abort"
        assert 0 < len(reply.ids) < len(TEXT)
        assert not any(stub.live for stub in stubs)


async def test_a_server_that_came_back_with_old_weights_is_not_used_under_a_new_name():
    async with routed() as (pool, _, stubs):
        await push(pool, 2)
        await stubs[1].restart()
        for reply in await asyncio.gather(*(ask(pool, f"{i}") for i in range(4))):
            assert {span.version for span in reply.versions} == {2}
        assert [stub.weight_version for stub in stubs] == [NAME(2)] * 2


async def test_one_dead_server_stops_neither_requests_nor_weights():
    async with routed() as (pool, router, stubs):
        stubs[1].kill()
        router.down.add(stubs[1].address)
        for _ in range(4):
            assert (await pool.probe()).running == 0
        assert bytes((await ask(pool)).ids[:-1]).decode() == TEXT
        assert pool.members[0].state == "used"
        await push(pool, 3)
        assert (await ask(pool)).versions[0].version == 3
        await stubs[1].restart()
        router.down.clear()
        for reply in await asyncio.gather(*(ask(pool, f"{i}") for i in range(4))):
            assert {span.version for span in reply.versions} == {3}
        assert [stub.weight_version for stub in stubs] == [NAME(3)] * 2


async def test_servers_whose_weights_differ_have_no_version():
    client = None
    async with routed() as (_, router, stubs):
        try:
            client = RouterClient(router.address)
            await client.get("/server_info", timeout_s=5.0)
            assert client.workers == tuple(stub.address for stub in stubs)
            assert b'"default"' in await client.get("/model_info", timeout_s=5.0)
            stubs[0]._sampler.version = "7"
            assert b'"disagreed"' in await client.get("/model_info", timeout_s=5.0)
            router.urls = router.urls[:1]
            await client.get("/server_info", timeout_s=5.0)
            assert client.workers == (stubs[0].address,)
            router.urls = []
            with pytest.raises(EngineError, match="the router has no servers yet"):
                await client.get("/server_info", timeout_s=5.0)
        finally:
            await client.aclose()


async def test_what_is_no_router_and_what_a_router_cannot_do():
    async with SGLangStub(rest) as stub:
        with pytest.raises(ConfigError, match="no SGLang server"):
            await connect(f"router:{stub.address}", tokenizer=ByteTokenizer())
    with pytest.raises(ConfigError, match="'tensor' does not reach servers behind a router"):
        await connect("router:http://127.0.0.1:9", tokenizer=ByteTokenizer(), transport="tensor")
    assert is_address("router:http://127.0.0.1:9")
    assert name_of("router:http://127.0.0.1:9") == "127.0.0.1:9"
