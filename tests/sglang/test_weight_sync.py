"""Weights into a real server: every transport, every pause mode, and what a server remembers of them."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forward_pass import ROUNDING, distance, gaps
from transformers import AutoModelForCausalLM

from icrl.errors import WeightSyncError
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.tiny import BASE_DIR
from icrl.train.sync import push
from icrl.types import SamplingParams

pytestmark = pytest.mark.sglang

TRANSPORTS = ["disk", "tensor", "distributed"]
PROMPT = [5, 9, *range(100, 160)]


def shaken(seed):
    """The embedded model with noise, so that every version says something else."""
    model = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


@pytest.fixture
async def engine(changing_server, request, tmp_path):
    engine = SGLangEngine(changing_server.address, directory=tmp_path, **getattr(request, "param", {}))
    await engine.start()
    yield engine
    await engine.resume()
    await engine.aclose()


def options(**more):
    return [pytest.param({"transport": name, **more}, id=name) for name in TRANSPORTS]


async def ask(engine, prompt=PROMPT, *, tokens=16, name="r"):
    return await engine.generate(prompt, SamplingParams(max_tokens=tokens), request_id=name)


@pytest.mark.parametrize("engine", options(verify=True), indirect=True)
async def test_what_is_sampled_afterwards_is_what_the_new_weights_say(engine):
    version = engine.info.weight_version
    for seed in (1, 2):
        version += 1
        model = shaken(seed)
        await ask(engine)  # leaves keys and values of older weights behind
        await push(engine, model, version)
        reply = await ask(engine)
        assert distance(model, PROMPT, reply) <= ROUNDING
        assert [span.version for span in reply.versions] == [version]
        assert engine.info.weight_version == version


async def long_request(engine, transport_version, mode, model):
    """Run one request over an update, with the prompt also asked while the update is under way."""
    started = asyncio.Event()
    task = asyncio.create_task(
        engine.generate(PROMPT, SamplingParams(max_tokens=400), request_id="long", on_delta=lambda ids: started.set())
    )
    await started.wait()
    await engine.pause(mode)
    during = asyncio.create_task(ask(engine, name="during")) if mode != "abort" else None
    await asyncio.sleep(0.05)
    await engine.update(model.named_parameters(), transport_version)
    await engine.resume()
    after = await ask(engine, name="after")
    return await task, after, await during if during else after


def endless(seed):
    """A model that never ends by itself: one direction is positive everywhere, and the end token's is its opposite."""
    model = shaken(seed)
    with torch.no_grad():
        rows = model.model.embed_tokens.weight
        rows[:, 0] = 5.0
        rows[model.config.eos_token_id, 0] = -5.0
        model.model.norm.weight[0] = 1.0
    return model


@pytest.mark.parametrize("engine", options(), indirect=True)
@pytest.mark.parametrize("mode", ["in_place", "retract"])
async def test_a_request_over_an_update_says_which_tokens_are_whose_and_new_ones_find_nothing_stale(engine, mode):
    version = engine.info.weight_version + 1
    await push(engine, endless(3), version)
    model = endless(4)
    crossing, after, during = await long_request(engine, version + 1, mode, model)
    assert [span.version for span in crossing.versions] == [version, version + 1]
    assert crossing.versions[0].end == crossing.versions[1].start
    for reply in (after, during):
        assert distance(model, PROMPT, reply) <= ROUNDING
    # What the crossing request left in the cache is of both versions; nobody may find it.
    prompt = [*PROMPT, *crossing.ids[:300]]
    assert distance(model, prompt, await ask(engine, prompt)) <= ROUNDING


def exactly(models, version, prompt, reply):
    """For every span, the largest difference to a full forward pass of the weights that it names."""
    for span in reply.versions:
        part = replace(reply, ids=reply.ids[: span.end], logprobs=reply.logprobs[: span.end], versions=())
        yield gaps(models[span.version - version], prompt, part)[span.start :].max().item()


@pytest.mark.parametrize("engine", options()[:1], indirect=True)
@pytest.mark.parametrize("mode", ["in_place", "retract"])
async def test_tokens_under_way_at_a_pause_are_of_the_weights_that_they_name(engine, mode):
    """The first of a prompt that is being computed then: the server says the new weights'; it is the old ones'."""
    models, crossed = [endless(13), endless(14)], 0
    prompt = [5, 9, *([*range(100, 200)] * 17)]
    for turn in range(4):
        version = engine.info.weight_version + 1
        await push(engine, models[0], version)
        prompt[1] = turn + 10
        asked = asyncio.create_task(ask(engine, prompt, tokens=8))
        await asyncio.sleep(0.03)
        await push(engine, models[1], version + 1, mode=mode)
        reply = await asked
        differences = list(exactly(models, version, prompt, reply))
        # Later tokens read keys and values of the old weights, where those stay in place.
        assert max(differences[:1] if mode == "in_place" else differences) <= ROUNDING
        crossed += len(differences) == 2
    assert crossed


@pytest.mark.parametrize("engine", options(), indirect=True)
async def test_an_update_that_is_cancelled_anywhere_is_made_good_by_the_next(engine, monkeypatch, tmp_path):
    from icrl.runtime.engines.sglang.transports import link

    monkeypatch.setattr(link.buckets, "__defaults__", (200_000,))
    old, new = shaken(15), shaken(16)
    for delay_s in (0.005, 0.02, 0.04, 0.06, 0.09):
        version = engine.info.weight_version + 2
        cancelled = asyncio.create_task(push(engine, new, version - 1))
        await asyncio.sleep(delay_s)
        cancelled.cancel()
        await asyncio.wait([cancelled], timeout=20)
        await engine.client.get("/ready", timeout_s=5)  # refused by a server that is paused
        await push(engine, old, version)
        assert distance(old, PROMPT, await ask(engine)) <= ROUNDING
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


@pytest.mark.parametrize("engine", [pytest.param({"flush": False}, id="disk")], indirect=True)
async def test_without_a_flush_later_requests_are_computed_from_stale_keys(engine):
    version = engine.info.weight_version + 1
    await push(engine, shaken(11), version)
    await ask(engine)
    model = shaken(12)
    await push(engine, model, version + 1)
    assert distance(model, PROMPT, await ask(engine)) > 1e-3


async def test_aborted_requests_come_back_with_what_they_had(engine):
    version = engine.info.weight_version + 1
    await push(engine, endless(5), version)
    crossing, after, _ = await long_request(engine, version + 1, "abort", shaken(6))
    assert crossing.finish_reason == "abort"
    assert crossing.ids
    assert [span.version for span in crossing.versions] == [version]
    assert [span.version for span in after.versions] == [version + 1]


def held(address_pid):
    """Open files and resident MiB of a process and all below it."""
    pids, files, pages = [address_pid], 0, 0
    for pid in pids:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
            files += len(os.listdir(f"/proc/{pid}/fd"))
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return files, pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("engine", options(), indirect=True)
async def test_thirty_updates_leave_nothing_behind(engine, tmp_path, changing_server):
    models, version = [shaken(7), shaken(8)], engine.info.weight_version
    memory = Path("/dev/shm")

    async def update(times):
        nonlocal version
        for index in range(times):
            version += 1
            await push(engine, models[index % 2], version)

    def left():
        server_files, server_mb = held(changing_server.server.pid)
        shared = {p.name for p in memory.iterdir() if p.name.startswith("torch_")}
        return len(os.listdir("/proc/self/fd")), server_files, server_mb, shared

    await update(5)
    before = await asyncio.to_thread(left)
    await update(30)
    after = await asyncio.to_thread(left)
    assert await asyncio.to_thread(os.listdir, tmp_path) == []
    assert after[0] <= before[0] + 3
    assert after[1] <= before[1] + 6
    assert after[2] <= before[2] + 60
    assert after[3] <= before[3]


@pytest.mark.parametrize("engine", options(), indirect=True)
async def test_weights_that_do_not_fit_leave_the_old_ones_serving(engine):
    version = engine.info.weight_version + 1
    good = shaken(9)
    await push(engine, good, version)
    wrong = dict(good.named_parameters()) | {"model.norm.weight": torch.zeros(7)}
    await engine.pause()
    with pytest.raises(WeightSyncError, match=rf"keeps version {version}: model\.norm\.weight: shape \(7,\)"):
        await engine.update(wrong.items(), version + 1)
    await engine.resume()
    reply = await ask(engine)
    assert distance(good, PROMPT, reply) <= ROUNDING
    assert [span.version for span in reply.versions] == [version]


@pytest.mark.parametrize("engine", [pytest.param({"transport": "tensor", "verify": True}, id="tensor")], indirect=True)
async def test_weights_that_changed_on_the_way_are_found(engine, monkeypatch):
    from icrl.runtime.engines.sglang.transports import tensor

    compact = tensor._compact
    monkeypatch.setattr(tensor, "_compact", lambda t: compact(t) + 1e-3 if t.dim() == 1 else compact(t))
    version = engine.info.weight_version + 1
    with pytest.raises(WeightSyncError, match="is not what was sent"):
        await push(engine, shaken(10), version)
    monkeypatch.undo()
    await push(engine, shaken(10), version)
    assert [span.version for span in (await ask(engine)).versions] == [version]
