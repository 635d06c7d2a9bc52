from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watched import until

from icrl.runtime.engines.meter import Meter, use_between
from icrl.runtime.engines.pool import EnginePool, PoolConfig
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.testing import ByteTokenizer
from icrl.testing.stub import SGLangStub
from icrl.testing.stub.capacity import Capacity
from icrl.train.engine_use import meters_of
from icrl.trajectory import Generation
from icrl.types import SamplingParams


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("icrl.runtime.engines.meter.time", clock)
    return clock


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), max_size=12))
def test_busy_time_is_the_union_of_the_requests_and_request_time_their_sum(requests):
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icrl.runtime.engines.meter.time", clock)
        meter = Meter()
        first = meter.read()
        edges = sorted([(start, 1) for start, _ in requests] + [(start + long, -1) for start, long in requests])
        for at, change in edges:
            clock.now = float(at)
            meter.enter() if change > 0 else meter.leave(None)
        clock.now = 100.0
        use = use_between([first], [meter.read()])
    seconds = {second for start, long in requests for second in range(start, start + long)}
    assert use.busy == pytest.approx(len(seconds) / 100)
    assert use.requests == pytest.approx(sum(long for _, long in requests) / 100)
    assert (use.tokens_per_s, use.cache_hit_rate) == (0.0, None)


def test_a_paused_engine_is_idle_whatever_waits_there(clock):
    meter = Meter()
    first = meter.read()
    meter.enter()
    for at, change in ((2, meter.pause), (7, meter.pause), (8, meter.resume), (9, meter.resume)):
        clock.now = float(at)
        change()
    clock.now = 10.0
    meter.leave(Generation(ids=(1,) * 20, logprobs=(0.0,) * 20, finish_reason="length", prompt_tokens=8))
    use = use_between([first], [meter.read()])
    assert (use.busy, use.requests, use.tokens_per_s, use.cache_hit_rate) == (0.4, 0.4, 2.0, 0.0)


def test_nothing_is_said_where_nothing_is_measured(clock):
    assert use_between([], []) is None
    meter = Meter()
    assert use_between([meter.read()], [meter.read()]) is None


async def ask(engine, name, tokens=40, ids=(1, 2, 3, 4)):
    return await engine.generate(list(ids), SamplingParams(max_tokens=tokens), request_id=name, session=name)


async def test_one_of_two_servers_that_works_is_half_a_pool():
    speed = Capacity(tokens_per_s_per_request=100.0)
    async with SGLangStub(lambda ids: "w" * 500, capacity=speed) as one, SGLangStub(lambda ids: "w" * 500) as two:
        servers = [SGLangEngine(stub.address, tokenizer=ByteTokenizer()) for stub in (one, two)]
        pool = EnginePool(servers, config=PoolConfig(probe_every_s=60.0))
        await pool.start()
        meters = meters_of(pool)
        assert meters == tuple(server.meter for server in servers)
        before = [meter.read() for meter in meters]
        await ask(pool, "a/0", tokens=30)
        use = use_between(before, [meter.read() for meter in meters])
        worked = [len(stub.requests) for stub in (one, two)]
        assert sorted(worked) == [0, 1]
        assert use.busy <= 0.5
        assert use.requests <= 1.0
        if worked == [1, 0]:  # 0.3 s of sampling outweigh what comes before and after
            assert use.busy > 0.25
            assert 50 < use.tokens_per_s <= 100
        await pool.aclose()


async def test_what_a_lost_server_sampled_and_a_cancelled_request_are_counted_and_nothing_stays_under_way():
    speed = Capacity(tokens_per_s_per_request=40.0)
    async with SGLangStub(lambda ids: "w" * 5000, capacity=speed) as stub:
        engine = SGLangEngine(stub.address, tokenizer=ByteTokenizer())
        await engine.start()
        asked = asyncio.create_task(ask(engine, "a/0", tokens=4000))
        await until(lambda: stub.live)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await engine.abort("a/0")
        lost = asyncio.create_task(ask(engine, "b/0", tokens=4000))
        await until(lambda: stub.live)
        stub.kill()
        (error,) = await asyncio.gather(lost, return_exceptions=True)
        assert error.retryable
        first = engine.meter.read()
        await asyncio.sleep(0.05)
        assert engine.meter.read().busy_s == first.busy_s > 0
        await engine.aclose()


async def test_a_server_that_is_paused_for_new_weights_is_idle():
    speed = Capacity(tokens_per_s_per_request=400.0)
    async with SGLangStub(lambda ids: "w" * 5000, capacity=speed) as stub:
        engine = SGLangEngine(stub.address, tokenizer=ByteTokenizer())
        await engine.start()
        asked = asyncio.create_task(ask(engine, "a/0", tokens=40))
        await until(lambda: stub.live)
        await engine.pause("in_place")
        first = engine.meter.read()
        await asyncio.sleep(0.05)
        assert engine.meter.read().busy_s == first.busy_s > 0
        stub.capacity = None
        await engine.resume()
        assert len((await asked).ids) == 40
        then = engine.meter.read()
        assert then.busy_s > first.busy_s
        assert (then.sampled_tokens, then.prompt_tokens) == (40, 4)
        await engine.aclose()
