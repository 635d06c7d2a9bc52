"""The pool over a real server that is killed in the middle of requests, and comes back without its weights."""

from __future__ import annotations

import asyncio

import pytest
from safetensors.torch import load_file
from watched import until

from icrl.runtime.engines.address import connect
from icrl.runtime.engines.pool import PoolConfig
from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.tiny import BASE_DIR
from icrl.types import SamplingParams

pytestmark = pytest.mark.sglang

GREEDY = SamplingParams(temperature=0.0, max_tokens=300)
NOISE = 1e-3
"""Two ways to add the same float32 numbers differ by up to 2e-4 in this model's log-probabilities."""


async def ask(pool, prompts, name, told=None):
    """Ask for everything at once."""
    return await asyncio.gather(
        *(
            pool.generate(
                prompt,
                GREEDY,
                request_id=f"{name}{i}",
                session=f"{name}{i}",
                on_delta=None if told is None else told.setdefault(i, []).extend,
            )
            for i, prompt in enumerate(prompts)
        )
    )


async def test_a_server_killed_and_restarted_in_the_middle_costs_no_token(changing_server, tmp_path):
    served = changing_server
    pool, tokenizer = await connect(
        served.address,
        pool=PoolConfig(probe_every_s=0.5, give_up_s=600.0),
        engine=SGLangConfig(stream_from=1, chunk_tokens=4),
        directory=tmp_path,
    )
    prompts = [tokenizer.encode(f"The river and code number {i} of Rikor, again and again, is") for i in range(24)]
    try:
        await pool.pause("in_place")
        await pool.update(load_file(BASE_DIR / "model.safetensors").items(), 7)
        await pool.resume()
        whole = await ask(pool, prompts, "whole")
        told = {}
        asking = asyncio.create_task(ask(pool, prompts, "killed", told))
        await until(lambda: sum(map(bool, told.values())) == len(prompts))
        await asyncio.to_thread(served.kill)
        await until(lambda: pool.members[0].state == "away")
        await asyncio.to_thread(served.stop)
        await asyncio.to_thread(served.start)
        resumed = await asking
    finally:
        await pool.aclose()
        await asyncio.to_thread(served.stop)
        await asyncio.to_thread(served.start)
    for i, (one, other) in enumerate(zip(whole, resumed, strict=True)):
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
        assert tuple(told[i]) == other.ids
        assert other.logprobs == pytest.approx(one.logprobs, abs=NOISE)
        assert [span.version for span in other.versions] == [7]
