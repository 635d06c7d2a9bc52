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
from icrl.runtime.engines.sglang.versions import UNTOUCHED, Versions
from icrl.runtime.engines.sglang.weights import MIXED, ServerWeights
from icrl.testing import ByteTokenizer, Capacity, SGLangStub
from icrl.train.sync import push
from icrl.types import SamplingParams

CHANGES = ("/pause_generation", "/begin_weight_update", "/update_weights_from_tensor", "/end_weight_update")
AFTER = ("/flush_cache", "/model_info", "/continue_generation")
QUESTIONS = ("/server_info", "/v1/models")
NAME = Versions(UNTOUCHED).name


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
    assert (stub.weight_version, sink.version, sink.fault) == (NAME(3), 3, None)
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
    assert [update.version for update in stub.updates] == [None, NAME(5)]


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
    assert (stub.weight_version, sink.version, sink.fault) == (NAME(1), 1, None)
    assert stub.calls[-1] == "/continue_generation"
    await push(sink, model(), 2)
    assert stub.weight_version == NAME(2)


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
    assert (stub.weight_version, sink.version, sink.fault) == (NAME(2), 2, None)


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
    assert stub.weight_version == NAME(1)


async def test_a_name_that_did_not_arrive_is_found(stub, connect, monkeypatch):
    monkeypatch.setattr(type(stub._weights), "_take", lambda *_: None)
    sink = await connect()
    with pytest.raises(WeightSyncError, match="calls its weights 'default', not '4@"):
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


async def test_without_a_checkpoint_here_the_first_update_that_succeeds_is_the_measure_of_the_next(
    stub, connect, checkpoint
):
    sink = await connect()
    await asyncio.to_thread(shutil.rmtree, checkpoint)
    stub.refuse("/update_weights_from_disk", status=400, body={"success": False, "message": "no such weight"})
    with pytest.raises(WeightSyncError, match="no such weight"):
        await sink.update([("wieght", torch.zeros(7))], 1)
    await sink.update([("weight", torch.zeros(5))], 1)
    with pytest.raises(WeightSyncError, match="shape"):
        await sink.update([("weight", torch.zeros(6))], 2)


class Announced:
    """Weights that say what will come, and may not keep their word."""

    def __init__(self, **pieces):
        self.layout = {"weight": torch.empty(2, 3, device="meta"), "bias": torch.empty(2, device="meta")}
        self.pieces = pieces

    def __iter__(self):
        return iter(self.pieces.items())


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ({}, "no weight was given for 'weight' and 1 more"),
        ({"bias": torch.zeros(2)}, "no weight was given for 'weight'"),
        ({"bias": torch.zeros(2, device="meta")}, "bias: has no values"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, r"bias: shape \(3,\), announced as \(2,\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "more: was not announced"),
    ],
)
@pytest.mark.parametrize("transport", ["disk", "tensor"])
async def test_a_stream_that_is_not_what_it_announced_is_never_loaded(stub, connect, transport, pieces, reason):
    sink = await connect(transport=transport)
    with pytest.raises(WeightSyncError, match=f"keeps version 0: {reason}"):
        await push_announced(sink, Announced(**pieces))
    assert (stub.updates, sink.fault, stub._weights.open) == ([], None, False)


async def push_announced(sink, weights):
    await sink.pause()
    try:
        await sink.update(weights, 1)
    finally:
        await sink.resume()


async def test_a_part_that_was_loaded_before_the_rest_failed_is_a_fault(stub, connect, monkeypatch):
    monkeypatch.setattr("icrl.runtime.engines.sglang.transports.link.buckets.__defaults__", (1,))
    sink = await connect(transport="tensor")
    three = Announced(weight=torch.zeros(2, 3), bias=torch.zeros(2), more=torch.zeros(1))
    with pytest.raises(WeightSyncError, match="more: was not announced"):
        await push_announced(sink, three)
    assert len(stub.updates) == 1
    assert sink.fault is not None
    assert stub.weight_version == MIXED


async def test_no_weights_at_all_are_refused_and_measure_nothing(stub, connect, checkpoint):
    sink = await connect()
    await asyncio.to_thread(shutil.rmtree, checkpoint)
    with pytest.raises(WeightSyncError, match="no weights were given"):
        await sink.update([], 1)
    await sink.update((pair for pair in [("weight", torch.zeros(5))]), 1)
    assert stub.weight_version == NAME(1)


async def test_a_broken_file_of_the_model_is_said_and_nothing_is_sent(stub, connect, checkpoint):
    sink = await connect()
    (checkpoint / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"[17]")
    with pytest.raises(WeightSyncError, match=r"version 1 was not sent; .* keeps version 0"):
        await push(sink, model(), 1)


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


@pytest.mark.parametrize("path", ["/pause_generation", "/update_weights_from_tensor", "/continue_generation"])
async def test_a_push_that_is_cancelled_and_cancelled_again_leaves_nothing_paused(stub, connect, monkeypatch, path):
    """Whatever call of the push is under way, and however impatient whoever cancels."""
    sink = await connect(transport="tensor")
    serve, entered = stub._control, asyncio.Event()

    async def slow(http):
        if http.path == path:
            entered.set()
            await asyncio.sleep(0.1)
        return await serve(http)

    monkeypatch.setattr(stub, "_control", slow)
    task = asyncio.create_task(push(sink, model(), 1))
    await entered.wait()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.01)
    assert task.cancelled()
    assert not stub._sampler.paused
    assert stub.calls[-1] == "/continue_generation"
    # Before the weights nothing has changed; once they were under way, either all is known or it is said.
    known = {"/pause_generation": (0, None), "/continue_generation": (1, None)}
    assert known.get(path, (0, sink.fault)) == (sink.version, sink.fault)
    assert (sink.fault is not None) == (path == "/update_weights_from_tensor")


async def test_a_server_that_dies_between_two_parts_and_comes_back_is_not_taken_for_updated(stub, connect, monkeypatch):
    monkeypatch.setattr("icrl.runtime.engines.sglang.transports.link.buckets.__defaults__", (1,))
    sink = await connect(transport="tensor")
    post, parts = sink._client.post, []

    async def restarted(path, payload=b"{}", *, timeout_s):
        if path == "/update_weights_from_tensor":
            parts.append(path)
            if len(parts) == 2:
                stub.kill()
                await stub.start()
        return await post(path, payload, timeout_s=timeout_s)

    monkeypatch.setattr(sink._client, "post", restarted)
    with pytest.raises(WeightSyncError, match="not known"):
        await push(sink, model(), 1)
    assert len(parts) == 2
    assert (stub.weight_version, stub._sampler.paused) == (MIXED, False)
    await push(sink, model(), 1)
    assert (stub.weight_version, sink.fault) == (NAME(1), None)


async def test_files_that_a_server_reads_are_not_removed_under_it(stub, connect, monkeypatch, tmp_path):
    """It would die of that."""
    sink, entered, seen = await connect(directory=tmp_path), asyncio.Event(), []

    async def load(body):
        entered.set()
        await asyncio.sleep(0.1)
        seen.append(await asyncio.to_thread(Path(body.model_path, "model-00000.safetensors").is_file))
        return {"success": True}

    monkeypatch.setitem(stub._posts, "/update_weights_from_disk", load)
    task = asyncio.create_task(push(sink, model(), 1))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [True]
    assert sink.fault is not None
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # the one that is served


async def test_a_resume_that_goes_wrong_is_tried_again(stub, connect):
    sink = await connect()
    stub.refuse("/continue_generation", status=503, times=2)
    await push(sink, model(), 1)
    assert not stub._sampler.paused
    assert sink.version == 1


async def test_weights_that_cannot_be_named_are_a_weight_sync_error_and_the_server_goes_on(stub, connect):
    sink = await connect(transport="tensor")
    stub.refuse("/update_weights_from_tensor")
    stub.refuse("/update_weight_version")
    with pytest.raises(WeightSyncError) as caught:
        await push(sink, model(), 1)
    assert "cannot be named" in caught.value.__notes__[0]
    assert not stub._sampler.paused


async def test_keys_change_once_the_server_lets_nobody_in(stub, connect, monkeypatch):
    """A key that was sent any earlier would name keys and values of both weights."""
    sink = await connect()
    serve, seen = stub._control, []

    async def spy(http):
        seen.append((http.path, sink.cache_key))
        return await serve(http)

    monkeypatch.setattr(stub, "_control", spy)
    await push(sink, model(), 1)
    assert dict(seen)["/pause_generation"] is None
    assert dict(seen)["/update_weights_from_disk"] == sink.cache_key
    assert sink.cache_key is not None


async def test_connecting_again_does_not_make_unknown_weights_known(stub):
    """Nor does another connection take a server's word for them."""
    engine, another = (SGLangEngine(stub.address, tokenizer=ByteTokenizer(), transport="tensor") for _ in range(2))
    await engine.start()
    stub.refuse("/update_weights_from_tensor")
    with pytest.raises(WeightSyncError):
        await push(engine, model(), 1)
    for which, reason in ((engine, "version 1 was sent after 0"), (another, "somebody else's failed")):
        await which.start()
        with pytest.raises(EngineError, match=reason):
            await which.generate([1, 2], SamplingParams(max_tokens=2), request_id="r")
    await push(another, model(), 1)
    reply = await another.generate([1, 2], SamplingParams(max_tokens=2), request_id="r")
    assert [span.version for span in reply.versions] == [1]
    await engine.aclose()
    await another.aclose()


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


@pytest.mark.parametrize(
    ("mode", "spans"),
    [("in_place", [(0, 0, 1), (1, 1, 8)]), ("retract", [(1, 0, 8)])],
)
async def test_a_request_that_was_under_way_does_not_pass_for_one_of_the_new_weights(stub, mode, spans):
    """The server names all of its tokens after the new weights, as it had reported none."""
    engine = SGLangEngine(stub.address, tokenizer=ByteTokenizer())
    await engine.start()
    stub._sampler.batch.capacity = Capacity(tokens_per_s=0.01, tokens_per_s_per_request=0.01)
    pending = asyncio.create_task(engine.generate([1, 2], SamplingParams(max_tokens=8), request_id="r"))
    while not stub.live:  # noqa: ASYNC110 (the stub has no event for it)
        await asyncio.sleep(0.001)
    await push(engine, model(), 1, mode=mode)
    stub._sampler.batch.capacity = None
    reply = await pending
    assert [(s.version, s.start, s.end) for s in reply.versions] == spans
    await engine.aclose()


def test_the_deadlines_are_bounded():
    assert max(module.CONTROL_S, module.PAUSE_S) <= 60
