"""Weight updates against the stub: order of calls, and what is known after a failure at every step."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from icrl.errors import EngineError, WeightSyncError
from icrl.runtime.engines.sglang import weights as module
from icrl.runtime.engines.sglang.client import Client
from icrl.runtime.engines.sglang.connect import read_facts
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.runtime.engines.sglang.weights import MIXED, ServerWeights
from icrl.testing import ByteTokenizer, SGLangStub
from icrl.train.sync import push
from icrl.types import SamplingParams

CHANGES = ("/pause_generation", "/begin_weight_update", "/update_weights_from_tensor", "/end_weight_update")
AFTER = ("/flush_cache", "/model_info", "/continue_generation")
QUESTIONS = ("/server_info", "/v1/models")


def model():
    return torch.nn.Linear(3, 2)


@pytest.fixture
def checkpoint(tmp_path):
    """What the stub says that it serves."""
    directory = tmp_path / "model"
    directory.mkdir()
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"vocab_size": 512}))
    return directory


@pytest.fixture
async def stub(checkpoint):
    async with SGLangStub(["a" * 200], model_path=str(checkpoint)) as stub:
        yield stub


@pytest.fixture
async def connect(stub):
    """Make sinks of the stub, and forget the calls that connecting took."""
    clients = []

    async def make(**options):
        clients.append(Client(stub.address))
        made = ServerWeights(clients[-1], await read_facts(clients[-1], tokenizer=ByteTokenizer()), **options)
        stub.calls.clear()
        return made

    yield make
    for client in clients:
        await client.aclose()


def changes(stub):
    """Calls that were made, without questions."""
    return tuple(call for call in stub.calls if call not in QUESTIONS)


async def test_tensors_are_sent_between_begin_and_end_and_the_name_is_read_back(stub, connect):
    sink = await connect(transport="tensor")
    await push(sink, model(), 3)
    assert changes(stub) == CHANGES + AFTER
    assert (stub.weight_version, sink.version, sink.fault) == ("3", 3, None)
    assert stub.updates[0].paused


async def test_files_need_no_brackets_and_are_gone_afterwards(stub, connect, tmp_path):
    sink = await connect(directory=tmp_path)
    await push(sink, model(), 1, mode="retract")
    assert changes(stub) == ("/pause_generation", "/update_weights_from_disk", *AFTER)
    written = Path(stub.updates[0].source[0])
    assert written.parent == tmp_path
    assert not await asyncio.to_thread(written.exists)


async def test_older_servers_know_no_brackets(checkpoint):
    async with SGLangStub(["a"], model_path=str(checkpoint), version="0.5.20") as stub:
        client = Client(stub.address)
        facts = await read_facts(client, tokenizer=ByteTokenizer())
        sink = ServerWeights(client, facts, transport="tensor")
        stub.calls.clear()
        await push(sink, model(), 1)
        await client.aclose()
    assert changes(stub) == ("/pause_generation", "/update_weights_from_tensor", *AFTER)


async def test_many_buckets_give_the_name_with_the_last(stub, connect, monkeypatch):
    monkeypatch.setattr("icrl.runtime.engines.sglang.transports.link.buckets.__defaults__", (1,))
    sink = await connect(transport="tensor")
    await push(sink, model(), 5)
    assert [update.version for update in stub.updates] == [None, "5"]


async def test_nothing_is_flushed_where_stale_keys_are_wanted(stub, connect):
    sink = await connect(flush=False)
    await push(sink, model(), 1)
    assert "/flush_cache" not in stub.calls
    assert sink.cache_key is None


async def test_every_pause_gives_later_requests_a_cache_of_their_own(stub, connect):
    sink = await connect()
    keys = {sink.cache_key}
    for version in (1, 2, 3):
        await push(sink, model(), version)
        keys.add(sink.cache_key)
    assert len(keys) == 4


@pytest.mark.parametrize("path", ["/pause_generation", "/begin_weight_update"])
async def test_a_failure_before_the_weights_keeps_the_old_ones(stub, connect, path):
    sink = await connect(transport="tensor")
    await push(sink, model(), 1)
    stub.refuse(path)
    with pytest.raises(WeightSyncError, match=f"keeps version 1: .*{path} was to fail"):
        await push(sink, model(), 2)
    assert (stub.weight_version, sink.version, sink.fault) == ("1", 1, None)
    assert stub.calls[-1] == "/continue_generation"
    await push(sink, model(), 2)
    assert stub.weight_version == "2"


@pytest.mark.parametrize("path", ["/update_weights_from_tensor", "/end_weight_update", "/flush_cache", "/model_info"])
async def test_a_failure_from_the_weights_on_says_that_they_are_unknown_and_resumes(stub, connect, path):
    sink = await connect(transport="tensor")
    await push(sink, model(), 1)
    stub.refuse(path)
    with pytest.raises(WeightSyncError, match=r"not known \(version 2 was sent after 1 .* send the weights again"):
        await push(sink, model(), 2)
    assert sink.fault is not None
    assert stub.weight_version == MIXED
    assert stub.calls[-2:] == ["/update_weight_version", "/continue_generation"]
    await push(sink, model(), 2)
    assert (stub.weight_version, sink.version, sink.fault) == ("2", 2, None)


async def test_a_begun_update_is_ended_after_a_failure(stub, connect):
    sink = await connect(transport="tensor")
    stub.refuse("/update_weights_from_tensor", status=400, body={"success": False, "message": "no room"})
    with pytest.raises(WeightSyncError, match="no room"):
        await push(sink, model(), 1)
    assert "/end_weight_update" in stub.calls


async def test_a_session_that_is_open_already_is_used(stub, connect):
    sink = await connect(transport="tensor")
    stub.refuse("/begin_weight_update", status=400, body={"success": False, "message": "a session is already open"})
    stub._weights.open = True
    await push(sink, model(), 1)
    assert stub.weight_version == "1"


async def test_a_name_that_did_not_arrive_is_found(stub, connect, monkeypatch):
    monkeypatch.setattr(type(stub._weights), "_take", lambda *_: None)
    sink = await connect()
    with pytest.raises(WeightSyncError, match="calls its weights 'default', not '4'"):
        await push(sink, model(), 4)
    assert sink.fault is not None


async def test_a_server_that_does_not_answer_is_given_up_on(stub, connect, monkeypatch):
    sink = await connect(transport="tensor", timeout_s=0.2)

    async def hang(body):
        await asyncio.Event().wait()

    monkeypatch.setitem(stub._posts, "/update_weights_from_tensor", hang)
    with pytest.raises(WeightSyncError, match="no answer in time"):
        await push(sink, model(), 1)
    assert stub.calls[-1] == "/continue_generation"


async def test_a_dead_server_is_reported_as_both_lost_and_not_resumed(stub, connect):
    sink = await connect()
    stub.kill()
    with pytest.raises(WeightSyncError, match="keeps version 0") as caught:
        await push(sink, model(), 1)
    assert "may still be paused" in caught.value.__notes__[0]


@pytest.mark.parametrize("mode", ["abort", "retract"])
async def test_abort_waits_for_the_batch_to_empty_and_retract_does_not(stub, connect, mode):
    sink = await connect()
    stub.refuse("/flush_cache", status=400, body="Flush cache failed.")
    await push(sink, model(), 1, mode=mode)
    assert stub.calls.count("/flush_cache") == (1 if mode == "abort" else 0)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"weight: shape \(3, 2\), the server's model has"),
        ({"weight": torch.zeros(2, 3)}, "no weight was given for 'bias'"),
        ({"weihgt": torch.zeros(2, 3), "bias": torch.zeros(2)}, "no weight 'weihgt'. Did you mean 'weight'"),
        ({"weight": torch.zeros(2, 3, dtype=torch.int8), "bias": torch.zeros(2)}, "int8 is not a floating type"),
    ],
)
async def test_weights_that_do_not_fit_are_never_sent(stub, connect, weights, reason):
    sink = await connect()
    with pytest.raises(WeightSyncError, match=reason):
        await sink.update(weights.items(), 1)
    assert (changes(stub), sink.version, sink.fault) == ((), 0, None)


async def test_without_a_checkpoint_here_the_first_update_is_the_measure_of_the_next(stub, connect, checkpoint):
    sink = await connect()
    await asyncio.to_thread(shutil.rmtree, checkpoint)
    await sink.update([("weight", torch.zeros(5))], 1)
    with pytest.raises(WeightSyncError, match="shape"):
        await sink.update([("weight", torch.zeros(6))], 2)


async def test_verification_compares_what_the_server_reports(stub, connect):
    sink = await connect(verify=True)
    with pytest.raises(WeightSyncError, match=r"model\.weight .* is none of the tensors that were sent"):
        await push(sink, model(), 1)
    assert sink.fault is not None


async def test_verification_finds_that_a_failed_update_changed_nothing(stub, connect):
    sink = await connect(verify=True)
    stub.refuse("/update_weights_from_disk")
    with pytest.raises(WeightSyncError, match="keeps version 0"):
        await push(sink, model(), 1)
    assert sink.fault is None


async def test_a_server_that_cannot_be_verified_is_found_before_anything_is_sent(stub, connect):
    sink = await connect(verify=True)
    stub.refuse("/weights_checker", status=400, body={"success": False, "message": "not compiled with CUDA"})
    with pytest.raises(WeightSyncError, match=r"version 1 was not sent; .* keeps version 0: .*CUDA"):
        await push(sink, model(), 1)
    assert "/update_weights_from_disk" not in stub.calls


async def test_a_cancelled_update_resumes_the_server(stub, connect, monkeypatch):
    sink = await connect(transport="tensor")
    arrived = asyncio.Event()

    async def hang(body):
        arrived.set()
        await asyncio.Event().wait()

    monkeypatch.setitem(stub._posts, "/update_weights_from_tensor", hang)
    task = asyncio.create_task(push(sink, model(), 1))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stub.calls[-1] == "/continue_generation"
    assert sink.fault is not None


async def test_an_engine_with_unknown_weights_takes_no_requests_until_it_has_some(stub):
    engine = SGLangEngine(stub.address, tokenizer=ByteTokenizer(), transport="tensor")
    await engine.start()
    stub.refuse("/end_weight_update")
    with pytest.raises(WeightSyncError):
        await push(engine, model(), 1)
    with pytest.raises(EngineError, match="weights are unknown"):
        await engine.generate([1, 2], SamplingParams(max_tokens=2), request_id="r")
    await push(engine, model(), 1)
    reply = await engine.generate([1, 2], SamplingParams(max_tokens=2), request_id="r")
    assert [span.version for span in reply.versions] == [1]
    await engine.aclose()


def test_the_deadlines_are_bounded():
    assert max(module.CONTROL_S, module.PAUSE_S) <= 60
