from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from icrl.errors import EngineError
from icrl.runtime.engines.protocol import EngineLoad
from icrl.runtime.engines.sglang.client import Client
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.runtime.engines.sglang.router import RouterClient
from icrl.runtime.engines.sglang.usage import ServerCounters, UsageReader, read_counters
from icrl.testing import ByteTokenizer, SGLangStub
from icrl.types import SamplingParams

# Of a server 0.5.23 that answered seven requests and aborted an eighth; most of its 85 families are left out.
RECORDED = b"""\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="models/base",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.0
# HELP sglang:fwd_occupancy Forward pass GPU occupancy percentage.
# TYPE sglang:fwd_occupancy gauge
sglang:fwd_occupancy{engine_type="unified",model_name="models/base",moe_ep_rank="0",pp_rank="0",tp_rank="0"} NaN
# HELP sglang:prompt_tokens_histogram Histogram of prompt token length.
# TYPE sglang:prompt_tokens_histogram histogram
sglang:prompt_tokens_histogram_sum{engine_type="unified",model_name="models/base"} 111.0
sglang:prompt_tokens_histogram_bucket{engine_type="unified",le="100.0",model_name="models/base"} 8.0
sglang:prompt_tokens_histogram_bucket{engine_type="unified",le="+Inf",model_name="models/base"} 8.0
sglang:prompt_tokens_histogram_count{engine_type="unified",model_name="models/base"} 8.0
# HELP sglang:routing_keys_active Number of unique routing keys with active requests
# TYPE sglang:routing_keys_active gauge
sglang:routing_keys_active 0.0
# HELP sglang:num_retracted_reqs The number of retracted requests.
# TYPE sglang:num_retracted_reqs gauge
sglang:num_retracted_reqs{model_name="models/base",moe_ep_rank="0",pid="694",pp_rank="0",tp_rank="0"} 5.0
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{engine_type="unified",is_streaming="false",model_name="models/base"} 111.0
# HELP sglang:generation_tokens_total Number of generation tokens processed.
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{engine_type="unified",is_streaming="false",model_name="models/base"} 687.0
# HELP sglang:cached_tokens_total Number of cached prompt tokens by source (device/host/storage).
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",engine_type="unified",model_name="models/base"} 80.0
# HELP sglang:num_aborted_requests_total Number of requests aborted.
# TYPE sglang:num_aborted_requests_total counter
sglang:num_aborted_requests_total{engine_type="unified",model_name="models/base"} 1.0
"""
IDLE = EngineLoad(running=0, waiting=0, kv_usage=0.0)
NOTHING = ServerCounters(generated_tokens=0, prompt_tokens=0, cached_tokens=0, aborted=0, retracted=0)


def test_what_a_real_server_said():
    counters = read_counters(RECORDED, engine="e")
    assert counters == ServerCounters(generated_tokens=687, prompt_tokens=111, cached_tokens=80, aborted=1, retracted=0)
    assert counters.cache_hit_rate == pytest.approx(80 / 111)
    assert NOTHING.cache_hit_rate is None


def test_ranks_of_one_model_repeat_each_other_and_replicas_add_up():
    name = "sglang:num_retracted_requests_total"
    ranks = [(0, 0, 3), (0, 1, 3), (1, 0, 4), (1, 1, 4)]
    lines = [f'{name}{{dp_rank="{dp}",tp_rank="{tp}"}} {count}.0\n' for dp, tp, count in ranks]
    assert read_counters("".join(lines).encode(), engine="e").retracted == 7


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b"sglang:prompt_tokens_total NaN",
        b"sglang:prompt_tokens_total +Inf",
        b'sglang:prompt_tokens_total{a="',
        b'sglang:prompt_tokens_total{a="b"} many',
    ],
)
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(EngineError, match="/metrics is not what an SGLang server says"):
        read_counters(text, engine="e")


async def test_an_engine_tells_its_servers_load_and_counters():
    async with SGLangStub(["four", "more"], api_key="k") as stub:
        engine = SGLangEngine(stub.address, api_key="k", tokenizer=ByteTokenizer())
        await engine.start()
        (fresh,) = await engine.usage()
        assert (fresh.address, fresh.load, fresh.counters) == (stub.address, IDLE, NOTHING)
        for turn in range(2):
            await engine.generate([1, 2, 3, 4], SamplingParams(max_tokens=9), request_id=f"t/{turn}")
        (used,) = await engine.usage()
        assert used.counters == ServerCounters(
            generated_tokens=10, prompt_tokens=8, cached_tokens=3, aborted=0, retracted=0
        )
        stub.kill()
        (gone,) = await engine.usage(timeout_s=1.0)
        assert (gone.load, gone.counters) == (None, None)
        await engine.aclose()


async def test_a_server_without_metrics_says_so_once(caplog):
    async with SGLangStub([], metrics=False) as stub:
        client, reader = Client(stub.address), UsageReader()
        for _ in range(3):
            (usage,) = await reader.read(client, timeout_s=5.0)
            assert (usage.load, usage.counters) == (IDLE, None)
        await client.aclose()
    assert [record.getMessage() for record in caplog.records] == [
        f"{stub.address} was started without --enable-metrics, so what it counts is not known"
    ]


async def test_servers_behind_a_router_are_told_apart_and_one_that_hangs_costs_only_its_own_answer():
    async def hang(_):
        await asyncio.Event().wait()

    async def workers(_):
        return web.json_response({"workers": [{"url": url} for url in urls]})

    hanging, router = web.Application(), web.Application()
    hanging.router.add_get("/{path:.*}", hang)
    router.router.add_get("/workers", workers)
    async with SGLangStub([]) as good, TestServer(hanging) as bad, TestServer(router) as front:
        urls = [good.address, str(bad.make_url("")).rstrip("/")]
        client = RouterClient(str(front.make_url("")).rstrip("/"))
        assert client.servers == (client,)  # nobody has asked yet
        with pytest.raises(EngineError):
            await client.get("/server_info", timeout_s=0.05)
        started = time.monotonic()
        told = await UsageReader().read(client, timeout_s=0.2)
        assert time.monotonic() - started < 5.0
        assert [usage.address for usage in told] == urls
        assert [usage.load for usage in told] == [IDLE, None]
        await client.aclose()
