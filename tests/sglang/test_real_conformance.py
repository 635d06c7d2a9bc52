"""The conformance checks against a real SGLang server, alone and in a pool of one."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest
from examined import WORDS, base_subject

from icrl.runtime.engines.pool import EnginePool
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.testing.conformance import CHECKS

pytestmark = pytest.mark.sglang


@asynccontextmanager
async def connected(address, *, pooled):
    server = SGLangEngine(address, tokenizer=WORDS)
    async with aclosing(EnginePool([server]) if pooled else server) as engine:
        await engine.start()
        watcher = SGLangEngine(address, tokenizer=WORDS)

        async def live():
            load = await watcher.probe()
            return load.running + load.waiting

        async with aclosing(watcher):
            await watcher.start()
            yield await asyncio.to_thread(lambda: base_subject(engine, live=live))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("pooled", [False, True], ids=["alone", "pooled"])
async def test_real_server_conforms(changing_server, pooled, check):
    await check(lambda: connected(changing_server.address, pooled=pooled))
