"""The pool over servers that speak SGLang's protocol: what dies is only sockets, all else is as in production."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
import torch
from watched import until

from icrl.runtime.agent import Agent
from icrl.runtime.engines.address import connect
from icrl.runtime.engines.pool import PoolConfig
from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.runtime.engines.sglang.versions import UNTOUCHED, Versions
from icrl.testing import ByteTokenizer, Capacity, Faults, SGLangStub, fake_logprob
from icrl.trajectory import StopReason, VersionSpan
from icrl.types import SamplingParams

PROMPT = tuple(b"prompt:")
NAME = Versions(UNTOUCHED).name
TEXT = "The quick brown fox jumps over the lazy dog. " * 4
PARAMS = SamplingParams(max_tokens=400)
QUICK = PoolConfig(give_up_s=10.0, first_wait_s=0.005, longest_wait_s=0.05, probe_every_s=0.05, abort_grace_s=2.0)
CHATTY = SGLangConfig(stream_from=1, chunk_tokens=4, abort_s=1.0)
SLOW = Capacity(tokens_per_s=4_000.0, tokens_per_s_per_request=400.0)


def rest(ids):
    """Say what is left of the text, as a model at temperature 0 would."""
    return TEXT[len(ids) - len(PROMPT) :]


@asynccontextmanager
async def stubs(count=2, **options):
    servers = [SGLangStub(rest, **options) for _ in range(count)]
    for server in servers:
        await server.start()
    try:
        yield servers
    finally:
        for server in servers:
            await server.aclose()


@asynccontextmanager
async def pool_over(servers, **options):
    address = ",".join(server.address for server in servers)
    options = {"pool": QUICK, "engine": CHATTY, "tokenizer": ByteTokenizer()} | options
    pool, _ = await connect(address, **options)
    try:
        yield pool
    finally:
        await pool.aclose()


async def ask(pool, name="t/0", **options):
    return await pool.generate(PROMPT, options.pop("params", PARAMS), request_id=name, session=name, **options)


async def push(pool, tensor, version):
    await pool.pause("in_place")
    try:
        await pool.update([("w", tensor)], version)
    finally:
        await pool.resume()


def check(reply):
    """Check a reply token for token: nothing lost, nothing twice."""
    whole = (*TEXT.encode(), 258)
    assert (reply.ids, reply.finish_reason) == (whole, "eos")
    assert reply.logprobs == tuple(fake_logprob(token, len(PROMPT) + i) for i, token in enumerate(whole))
    assert (reply.versions[0].start, reply.versions[-1].end) == (0, len(whole))


async def test_a_server_that_dies_in_the_middle_costs_no_token():
    async with stubs(2, capacity=SLOW) as servers, pool_over(servers) as pool:
        told = {f"t{i}/0": [] for i in range(8)}
        asking = [asyncio.create_task(ask(pool, name, on_delta=told[name].extend)) for name in told]
        await until(lambda: all(told.values()))
        servers[0].kill()
        for name, reply in zip(told, await asyncio.gather(*asking), strict=True):
            check(reply)
            assert tuple(told[name]) == reply.ids
        assert [member.state for member in pool.members] == ["away", "used"]
        resumed = [r for r in servers[1].requests if len(r.ids) > len(PROMPT)]
        assert resumed
        await servers[0].restart()
        await until(lambda: pool.members[0].state == "used")


async def test_the_only_server_may_be_restarted():
    async with stubs(1, capacity=SLOW) as (server,), pool_over([server]) as pool:
        told = []
        asking = asyncio.create_task(ask(pool, on_delta=told.extend))
        await until(lambda: told)
        await server.restart()
        check(await asking)
        assert server.deaths == 1


@pytest.mark.parametrize("incremental", [False, True])
async def test_no_fault_of_a_server_costs_a_token(incremental):
    shares = {"error_500": 0.1, "error_429": 0.1, "resets": 0.1, "truncated": 0.1, "dies_mid_stream": 0.2}
    shares["garbage"] = 0.2
    faults = Faults(**shares, seed=3)
    async with stubs(2, faults=faults, incremental=incremental) as servers, pool_over(servers) as pool:
        told = {f"t{i}/0": [] for i in range(40)}
        for name, reply in zip(
            told, await asyncio.gather(*(ask(pool, name, on_delta=told[name].extend) for name in told)), strict=True
        ):
            check(reply)
            assert tuple(told[name]) == reply.ids
        assert sum(len(server.requests) for server in servers) > 40
        assert all(member.in_flight == 0 for member in pool.members)


async def test_a_restarted_server_is_brought_up_to_date_before_it_is_used(tmp_path):
    async with stubs(2) as servers, pool_over(servers, directory=tmp_path) as pool:
        await pool.pause("in_place")
        await pool.update([("w", torch.ones(2))], 5)
        await pool.resume()
        assert pool.info.weight_version == 5
        await servers[0].restart()
        assert servers[0].weight_version == "default"
        for i in range(4):
            reply = await ask(pool, f"t{i}/0")
            assert reply.versions == (VersionSpan(version=5, start=0, end=len(reply.ids)),)
        await until(lambda: servers[0].weight_version == NAME(5))
        await until(lambda: [member.state for member in pool.members] == ["used", "used"])


@pytest.mark.parametrize("path", [None, "/update_weights_from_disk", "/continue_generation"])
async def test_the_only_server_is_down_just_when_weights_are_sent(path, tmp_path):
    async with stubs(1, capacity=SLOW) as (server,), pool_over([server], directory=tmp_path) as pool:
        client = pool.members[0].server.client
        post, told = client.post, []

        async def falling(where, *args, **options):
            if where == path:
                client.post = post
                server.kill()
            return await post(where, *args, **options)

        client.post = falling
        if path is None:
            server.kill()
        pushing = asyncio.create_task(push(pool, torch.ones(2), 5))
        await until(lambda: not server.alive)
        asking = asyncio.create_task(ask(pool, on_delta=told.extend))
        await asyncio.sleep(0.1)
        await server.restart()
        await pushing
        reply = await asking
        check(reply)
        assert tuple(told) == reply.ids
        assert (server.weight_version, reply.versions[-1].version, pool.info.weight_version) == (NAME(5), 5, 5)


async def test_a_server_that_refuses_weights_is_not_used_under_their_name(tmp_path):
    settings = PoolConfig(give_up_s=10.0, probe_every_s=0.05, keep_weights=False)
    async with stubs(2) as servers, pool_over(servers, directory=tmp_path, pool=settings) as pool:
        servers[1].refuse("/update_weights_from_disk", status=500)
        await pool.pause("in_place")
        await pool.update([("w", torch.ones(2))], 1)
        await pool.resume()
        await until(lambda: pool.members[1].state == "stale")
        for i in range(4):
            assert (await ask(pool, f"t{i}/0")).versions[0].version == 1
        assert not servers[1].requests
        await pool.pause("in_place")
        await pool.update([("w", torch.zeros(2))], 2)
        await pool.resume()
        assert [member.state for member in pool.members] == ["used", "used"]
        assert [server.weight_version for server in servers] == [NAME(2)] * 2


async def test_an_agent_answers_while_servers_die():
    def answer(ids):
        return "<think> " + "so " * 40 + "</think><answer> 42 </answer>"

    servers = [SGLangStub(answer, capacity=SLOW) for _ in range(2)]
    for server in servers:
        await server.start()
    try:
        async with pool_over(servers) as pool, Agent(pool) as agent:
            runs = [asyncio.create_task(agent.run(f"{i}?")) for i in range(6)]
            await until(lambda: all(server.live for server in servers) or servers[0].live)
            servers[0].kill()
            results = await asyncio.gather(*runs)
        assert [result.trajectory.stop_reason for result in results] == [StopReason.ANSWER] * 6
    finally:
        for server in servers:
            await server.aclose()
