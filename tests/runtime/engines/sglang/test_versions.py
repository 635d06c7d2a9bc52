"""Two runs that give weights to one server, and count alike, are told apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch
from watched import until

from icrl.errors import EngineError
from icrl.runtime.engines.pool import EnginePool, PoolConfig
from icrl.runtime.engines.protocol import FOREIGN, LostRequest
from icrl.runtime.engines.sglang import versions as module
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.runtime.engines.sglang.versions import MIXED, UNTOUCHED, Versions
from icrl.testing import ByteTokenizer, Capacity, SGLangStub
from icrl.train.sync import push
from icrl.trajectory import Generation
from icrl.types import SamplingParams

PROMPT = tuple(b"prompt:")
QUICK = PoolConfig(give_up_s=10.0, first_wait_s=0.005, longest_wait_s=0.05, probe_every_s=0.02)


@pytest.fixture
async def stub() -> AsyncIterator[SGLangStub]:
    async with SGLangStub(lambda ids: [65] * 40) as stub:
        yield stub


@asynccontextmanager
async def process(stub: SGLangStub, monkeypatch: pytest.MonkeyPatch, token: str) -> AsyncIterator[SGLangEngine]:
    """Open an engine as another process would."""
    engine = SGLangEngine(stub.address, tokenizer=ByteTokenizer(), transport="tensor")
    with monkeypatch.context() as patch:
        patch.setattr(module, "TOKEN", token)
        await engine.start()
    yield engine
    await engine.aclose()


def model() -> torch.nn.Module:
    return torch.nn.Linear(1, 1)


async def ask(engine: SGLangEngine | EnginePool, name: str = "r") -> Generation:
    return await engine.generate(PROMPT, SamplingParams(max_tokens=40), request_id=name)


def versions(reply: Generation) -> set[int]:
    return {span.version for span in reply.versions}


def test_only_what_was_sent_from_here_counts_once_something_was() -> None:
    versions = Versions("7@old")
    assert [versions.number(name) for name in ("7@old", "9@old", "9", UNTOUCHED, "odd")] == [7, 9, 9, 0, 0]
    assert versions.number(MIXED) == FOREIGN
    versions.took(8)
    assert [versions.number(name) for name in (versions.name(8), "7@old", UNTOUCHED)] == [8, 7, 0]
    assert {versions.number(name) for name in ("8@old", "9@old", "9", "odd", MIXED)} == {FOREIGN}
    assert [versions.intruded(name) for name in ("8@old", versions.name(8), UNTOUCHED)] == [True, False, False]


def test_what_was_there_before_does_not_pass_for_the_same_number_from_here() -> None:
    for name in (UNTOUCHED, "0@old"):
        versions = Versions(name)
        versions.took(0)
        assert (versions.number(name), versions.number(versions.name(0))) == (FOREIGN, 0)


async def test_two_runs_that_send_the_same_number_notice_each_other(
    stub: SGLangStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(stub, monkeypatch, "aaaaaaaa") as a, process(stub, monkeypatch, "bbbbbbbb") as b:
        await push(a, model(), 1)
        assert versions(await ask(a)) == {1}
        await push(b, model(), 1)
        assert versions(await ask(b)) == {1}
        with pytest.raises(LostRequest, match="'1@bbbbbbbb', which were not sent from here: somebody else") as caught:
            await ask(a)
        assert versions(caught.value.partial) == {FOREIGN}
        await push(a, model(), 1)
        with pytest.raises(LostRequest, match="'1@aaaaaaaa'"):
            await ask(b)
        await b.start()
        with pytest.raises(EngineError, match="somebody else gave it those that it calls '1@aaaaaaaa'"):
            await ask(b)
        await push(b, model(), 2)
        assert versions(await ask(b)) == {2}


async def test_a_request_that_another_run_interrupts_is_not_half_ours(
    stub: SGLangStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.capacity = Capacity(tokens_per_s=1000, tokens_per_s_per_request=20)
    async with process(stub, monkeypatch, "aaaaaaaa") as a, process(stub, monkeypatch, "bbbbbbbb") as b:
        await push(a, model(), 4)
        asking = asyncio.create_task(ask(a))
        await until(lambda: bool(stub.live))
        await asyncio.sleep(0.2)
        await push(b, model(), 4)
        stub.capacity = None
        with pytest.raises(LostRequest, match="4@bbbbbbbb"):
            await asking


async def test_pools_throw_away_what_the_other_runs_weights_sampled(
    stub: SGLangStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(stub, monkeypatch, "aaaaaaaa") as a, process(stub, monkeypatch, "bbbbbbbb") as b:
        pool = EnginePool([a], config=QUICK)
        await pool.start()
        await push(pool, model(), 1)
        await push(b, model(), 1)
        asking = asyncio.create_task(ask(pool))
        await until(lambda: pool.members[0].state != "used")
        assert "somebody else gives it weights" in pool.members[0].why
        assert versions(await asking) == {1}  # from here: it has got them again
        assert stub.weight_version == "1@aaaaaaaa"
        await pool.aclose()


async def test_a_resumed_run_goes_on_from_what_the_last_process_left(
    stub: SGLangStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(stub, monkeypatch, "aaaaaaaa") as a:
        await push(a, model(), 7)
    async with process(stub, monkeypatch, "bbbbbbbb") as b:
        assert b.info.weight_version == 7
        assert versions(await ask(b)) == {7}
        await push(b, model(), 5)  # from an earlier checkpoint
        assert (versions(await ask(b)), stub.weight_version) == ({5}, "5@bbbbbbbb")


async def test_whoever_only_asks_takes_the_weights_of_whoever_trains(
    stub: SGLangStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(stub, monkeypatch, "aaaaaaaa") as trainer, process(stub, monkeypatch, "bbbbbbbb") as server:
        pool = EnginePool([server], config=QUICK)
        await pool.start()
        for version in (1, 2):
            await push(trainer, model(), version)
            assert versions(await ask(pool)) == {version}
        stub._sampler.renew(MIXED, flush=True)
        asking = asyncio.create_task(ask(pool))
        await until(lambda: pool.members[0].state != "used")
        assert "failed half-way" in pool.members[0].why
        await push(trainer, model(), 3)
        assert versions(await asking) == {3}
        await pool.aclose()
