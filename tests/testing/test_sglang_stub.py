"""The stub over HTTP: the shapes of its replies, its order of calls, its faults and its deaths."""

import asyncio
import json
import multiprocessing

import aiohttp
import pytest

from icrl import testing
from icrl.errors import ConfigError
from icrl.testing import Babble, Capacity, Faults, SGLangStub, fake_logprob, run_stub

END = 258
SLOW = Capacity(tokens_per_s_per_request=50)


@pytest.fixture
async def client():
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(client, stub, path="/generate", **body):
    async with client.post(stub.address + path, json=body) as reply:
        data = await reply.read()
        return reply.status, json.loads(data) if data[:1] in b"{[" and data else data.decode()


async def say(client, stub, ids=(1, 2, 3), rid="t/0", stream=False, **sampling):
    body = {"input_ids": [*ids], "rid": rid, "return_logprob": True, "stream": stream, "sampling_params": sampling}
    if not stream:
        return await ask(client, stub, **body)
    async with client.post(f"{stub.address}/generate", json=body) as reply:
        assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        lines = (await reply.read()).split(b"\n\n")
        return [line[6:] for line in lines if line]


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_names_are_loaded_when_they_are_used():
    assert all(getattr(testing, name).__doc__ for name in testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Stub'"):
        _ = testing.Stub


async def test_a_reply_has_the_fields_of_the_server(client):
    async with SGLangStub(["héllo</s> more"]) as stub:
        status, reply = await say(client, stub, stop="</s>")
    meta = reply["meta_info"]
    ids = [*"héllo</s>".encode()]
    assert (status, reply["text"], reply["output_ids"]) == (200, "héllo", ids)
    assert meta["finish_reason"] == {"type": "stop", "matched": "</s>"}
    assert meta["output_token_logprobs"] == [[fake_logprob(t, 3 + n), t, None] for n, t in enumerate(ids)]
    assert meta["weight_versions"] == [{"version": "default", "start": 0, "end": len(ids)}]
    assert (meta["id"], meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == ("t/0", 3, 10, 0)
    assert (stub.seen, stub.sampled) == ({"t/0": (1, 2, 3)}, {"t/0": tuple(ids)})


@pytest.mark.parametrize("incremental", [False, True])
async def test_both_kinds_of_stream(client, incremental):
    async with SGLangStub(["hello"], incremental=incremental, stream_interval=2) as stub:
        *events, done = await say(client, stub, stream=True)
    pieces = [json.loads(event) for event in events]
    assert done == b"[DONE]"
    want = [[104, 101], [108, 108], [111, END]] if incremental else [[*b"he"], [*b"hell"], [*b"hello", END]]
    assert [piece["output_ids"] for piece in pieces] == want
    assert [piece["text"] for piece in pieces] == (["he", "ll", "o"] if incremental else ["he", "hell", "hello"])
    counts = [len(piece["meta_info"]["output_token_logprobs"]) for piece in pieces]
    assert counts == [len(ids) for ids in want]
    assert [piece["meta_info"]["completion_tokens"] for piece in pieces] == [2, 4, 6]
    assert ["weight_versions" in piece["meta_info"] for piece in pieces] == [False, False, True]
    assert pieces[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": END}


async def test_prefixes_are_cached_until_they_are_flushed(client):
    async with SGLangStub(lambda ids: [7] * 10) as stub:
        prompt = list(range(200))
        cached = []
        for ids in (prompt, [*prompt, *[7] * 10, 1, 2, 3], prompt):
            cached.append((await say(client, stub, ids))[1]["meta_info"]["cached_tokens"])
        assert cached == [0, 209, 199]  # the last sampled token has no keys and values; one token is always run
        assert await ask(client, stub, "/flush_cache") == (200, "Cache flushed.\n")
        assert (await say(client, stub, prompt))[1]["meta_info"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ({}, {"error": {"message": "Either text, input_ids or input_embeds should be provided."}}),
        ({"input_ids": []}, {"error": {"message": "input_ids cannot be empty."}}),
        ({"input_ids": [1], "sampling_params": {"seed": 1}}, {"error": "Object contains unknown field `seed`"}),
    ],
)
async def test_bad_requests_are_refused_in_the_servers_shapes(client, body, shape):
    async with SGLangStub(["x"]) as stub:
        assert await ask(client, stub, **body) == (400, shape)
        status, reply = await ask(client, stub, input_ids=["a"])
        assert (status, reply["object"], reply["code"]) == (400, "error", 400)


async def test_the_context_limit_refuses_and_never_cuts(client):
    async with SGLangStub(["x", "x"], context_limit=10) as stub:
        status, reply = await say(client, stub, max_new_tokens=8)
        assert (status, "a total of 11 tokens" in reply["error"]["message"]) == (400, True)
        assert (await say(client, stub, max_new_tokens=7))[0] == 200
        assert "longer than the model's context" in (await say(client, stub, range(10)))[1]["error"]["message"]


async def test_names_of_live_requests_are_unique(client):
    async with SGLangStub(Babble(), capacity=SLOW) as stub:
        first = asyncio.ensure_future(say(client, stub, max_new_tokens=400))
        await until(lambda: stub.live)
        assert await say(client, stub) == (400, {"error": {"message": "Duplicate request ID detected: t/0"}})
        await ask(client, stub, "/abort_request", rid="unknown")
        assert await ask(client, stub, "/abort_request", rid="t/0") == (200, "")
        status, reply = await first
        assert (status, reply["meta_info"]["finish_reason"]["type"]) == (200, "abort")
        assert tuple(reply["output_ids"]) == stub.sampled["t/0"]
        assert stub.requests[0].reason == "abort"


async def test_a_client_that_goes_away_takes_its_request_along(client):
    async with SGLangStub(Babble(), capacity=SLOW) as stub:
        task = asyncio.ensure_future(say(client, stub, max_new_tokens=400))
        await until(lambda: stub.live)
        task.cancel()
        await until(lambda: not stub.live)


@pytest.mark.parametrize("mode", ["in_place", "retract"])
async def test_a_request_that_spans_an_update_says_so(client, mode, tmp_path):
    async with SGLangStub(Babble(), capacity=Capacity(tokens_per_s_per_request=50)) as stub:
        task = asyncio.ensure_future(say(client, stub, max_new_tokens=60))
        await until(lambda: stub.live)
        await asyncio.sleep(0.1)
        paused = await ask(client, stub, "/pause_generation", mode=mode)
        assert paused == (200, {"message": "Generation paused successfully.", "status": "ok"})
        assert (await ask(client, stub, "/flush_cache?timeout=0.01"))[0] == 400
        assert (await ask(client, stub, "/flush_cache"))[0] == (400 if mode == "in_place" else 200)
        async with client.get(f"{stub.address}/ready") as ready:
            assert ready.status == 503
        late = asyncio.ensure_future(say(client, stub, rid="late", max_new_tokens=3))
        status, done = await ask(
            client, stub, "/update_weights_from_disk", model_path=str(tmp_path), weight_version="7"
        )
        assert (status, done["message"]) == (200, "Succeeded to update model weights. Weight version updated to 7.")
        assert not task.done()
        assert "late" not in stub.live
        stub.capacity = None
        await ask(client, stub, "/continue_generation")
        meta = (await task)[1]["meta_info"]
        (old, new), (one,) = meta["weight_versions"], (await late)[1]["meta_info"]["weight_versions"]
        assert (old["version"], new["version"], one["version"]) == ("default", "7", "7")
        assert (old["start"], old["end"], new["end"]) == (0, new["start"], 60)
        assert meta["num_retractions"] == (mode == "retract")
        assert (stub.updates[0].paused, stub.weight_version) == (True, "7")


async def test_pausing_may_abort(client):
    async with SGLangStub(Babble(), capacity=SLOW) as stub:
        task = asyncio.ensure_future(say(client, stub, max_new_tokens=400))
        await until(lambda: stub.live)
        await ask(client, stub, "/pause_generation")
        assert (await task)[1]["meta_info"]["finish_reason"]["type"] == "abort"


async def test_updates_wait_for_requests_unless_these_are_aborted(client, tmp_path):
    async with SGLangStub(Babble(), capacity=Capacity(tokens_per_s_per_request=400)) as stub:
        for abort, reason, count in ((False, "length", 40), (True, "abort", 4000)):
            task = asyncio.ensure_future(say(client, stub, max_new_tokens=count))
            await until(lambda: stub.live)
            update = {"model_path": str(tmp_path), "abort_all_requests": abort}
            assert (await ask(client, stub, "/update_weights_from_disk", **update))[0] == 200
            assert not stub.live
            assert (await task)[1]["meta_info"]["finish_reason"]["type"] == reason
        assert [update.paused for update in stub.updates] == [False, False]


async def test_tensors_are_taken_between_begin_and_end_only(client):
    async with SGLangStub(["x"]) as stub:
        tensors = {"serialized_named_tensors": ["QUJD"], "weight_version": "1"}
        status, reply = await ask(client, stub, "/update_weights_from_tensor", **tensors)
        assert (status, reply["success"]) == (400, False)
        assert "must run between begin_weight_update() and end_weight_update()" in reply["message"]
        assert (await ask(client, stub, "/end_weight_update"))[0] == 400
        checks = [(await ask(client, stub, "/weights_checker", action="checksum"))[1]["ranks"]]
        for path, body in (
            ("begin_weight_update", {}),
            ("update_weights_from_tensor", tensors),
            ("end_weight_update", {}),
        ):
            assert (await ask(client, stub, f"/{path}", **body))[0] == 200
        checks.append((await ask(client, stub, "/weights_checker"))[1]["ranks"])
        assert checks[0] != checks[1]
        assert [(update.transport, update.version) for update in stub.updates] == [("tensor", "1")]


async def test_distributed_updates_need_their_group(client):
    async with SGLangStub(["x"], version="0.5.19") as stub:
        tensors = {"names": ["a"], "dtypes": ["float32"], "shapes": [[1]], "group_name": "g", "weight_version": "2"}
        assert (await ask(client, stub, "/update_weights_from_distributed", **tensors))[0] == 400
        assert (await ask(client, stub, "/destroy_weights_update_group", group_name="g"))[0] == 400
        assert (await ask(client, stub, "/init_weights_update_group", group_name="g", world_size=2))[0] == 200
        assert (await ask(client, stub, "/update_weights_from_distributed", **tensors))[0] == 200
        assert (await ask(client, stub, "/destroy_weights_update_group", group_name="g"))[0] == 200
        assert (await ask(client, stub, "/update_weight_version", new_version="9"))[1]["new_version"] == "9"
        assert stub.weight_version == "9"
        assert (await ask(client, stub, "/update_weights_from_disk", model_path="/nowhere"))[0] == 400


@pytest.mark.parametrize(
    ("version", "there", "gone"),
    [
        ("0.5.23", ["/ready", "/v1/loads"], ["/get_load", "/get_weight_version"]),
        ("0.5.20", ["/ready", "/get_load"], []),
        ("0.5.19", ["/get_load", "/get_weight_version", "/model_info"], ["/ready"]),
    ],
)
async def test_versions_differ_in_what_they_answer(client, version, there, gone):
    async with SGLangStub(["x"], version=version) as stub:
        for status, paths in ((200, there), (404, gone)):
            for path in paths:
                async with client.get(stub.address + path) as reply:
                    assert reply.status == status
        begun = (await ask(client, stub, "/begin_weight_update"))[0]
        assert begun == (200 if version >= "0.5.21" else 404)


async def test_old_servers_do_not_report_spans(client):
    async with SGLangStub(["x"], version="0.5.18") as stub:
        assert "weight_versions" not in (await say(client, stub))[1]["meta_info"]
    with pytest.raises(ConfigError, match="'latest' is no version"):
        SGLangStub(["x"], version="latest")


async def test_what_a_server_says_about_itself(client):
    stub = SGLangStub(
        Babble(), context_limit=2048, kv_tokens=1000, capacity=Capacity(tokens_per_s_per_request=1e-3, max_running=1)
    )
    async with stub:
        tasks = [asyncio.ensure_future(say(client, stub, range(50), rid=f"{n}")) for n in range(3)]
        await until(lambda: len(stub.live) == 3)
        said = {}
        for path in ("/model_info", "/server_info", "/v1/models", "/v1/loads"):
            async with client.get(stub.address + path) as reply:
                said[path] = await reply.json()
        async with client.get(f"{stub.address}/metrics") as reply:
            metrics = await reply.text()
        stub.kill()
        await asyncio.gather(*tasks, return_exceptions=True)
    (load,) = said["/v1/loads"]["loads"]
    assert (load["num_running_reqs"], load["num_waiting_reqs"], load["token_usage"]) == (1, 2, 0.15)
    assert (said["/model_info"]["weight_version"], said["/server_info"]["version"]) == ("default", "0.5.23")
    assert said["/v1/models"]["data"][0]["max_model_len"] == 2048
    labels = 'engine_type="unified",model_name="scripted",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
    assert f"sglang:num_queue_reqs{{{labels}}} 2.0" in metrics


async def test_keys(client):
    async with SGLangStub(["x"], api_key="k") as stub:
        assert await say(client, stub) == (401, {"error": "Unauthorized"})
        async with client.get(f"{stub.address}/health") as reply:
            assert reply.status == 200
        async with client.get(f"{stub.address}/model_info", headers={"Authorization": "Bearer k"}) as reply:
            assert reply.status == 200


async def test_faults_that_are_answers(client):
    async with SGLangStub(
        Babble(), faults=Faults(at={0: "error_500", 1: "error_429", 2: "garbage", 4: "slow"})
    ) as stub:
        statuses = [(await say(client, stub, max_new_tokens=4))[0] for _ in range(5)]
        assert statuses == [500, 429, 200, 200, 200]
        assert [asked.fault for asked in stub.requests] == ["error_500", "error_429", "garbage", None, "slow"]
        assert [len(asked.sampled) for asked in stub.requests] == [0, 0, 4, 4, 4]


@pytest.mark.parametrize("stream", [False, True])
async def test_faults_that_break_the_connection(client, stream):
    async with SGLangStub(Babble(), faults=Faults(at={0: "resets", 1: "dies_mid_stream"})) as stub:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await say(client, stub, stream=stream)
        with pytest.raises(aiohttp.ClientPayloadError):
            await say(client, stub, stream=stream, max_new_tokens=9)
        assert len(await say(client, stub, stream=stream)) > 0
        assert not stub.live


async def test_replies_that_end_in_the_middle(client):
    async with SGLangStub(Babble(), faults=Faults(truncated=1.0)) as stub:
        events = await say(client, stub, stream=True, max_new_tokens=8)
        assert [len(json.loads(event)["output_ids"]) for event in events] == [1, 2, 3, 4]
        with pytest.raises(json.JSONDecodeError):
            await say(client, stub)
    async with SGLangStub(Babble(), faults=Faults(garbage=1.0)) as stub:
        assert (await say(client, stub, stream=True, max_new_tokens=2))[-1].startswith(b"<html>")


async def test_an_id_outside_the_vocabulary_kills_and_a_restart_brings_back(client):
    async with SGLangStub(lambda ids: "x") as stub:
        await ask(client, stub, "/update_weight_version", new_version="5")
        address = stub.address
        with pytest.raises(aiohttp.ClientError):
            await say(client, stub, [259])
        assert (stub.alive, stub.deaths) == (False, 1)
        with pytest.raises(aiohttp.ClientConnectorError):
            await say(client, stub)
        await stub.restart()
        assert (stub.address, stub.weight_version) == (address, "default")
        assert (await say(client, stub))[0] == 200
        assert [asked.number for asked in stub.requests] == [0]


async def test_death_breaks_running_requests(client):
    async with SGLangStub(Babble(), capacity=SLOW) as stub:
        tasks = [asyncio.ensure_future(say(client, stub, rid=str(n), stream=n == 1)) for n in range(2)]
        await until(lambda: len(stub.live) == 2)
        stub.kill()
        stub.kill()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, aiohttp.ClientError) for end in ends)
        assert (stub.deaths, not stub.live) == (1, True)


async def test_single_paths_can_be_made_to_fail(client):
    async with SGLangStub(["x"]) as stub:
        stub.refuse("/pause_generation", status=503, times=2)
        assert [(await ask(client, stub, "/pause_generation"))[0] for _ in range(3)] == [503, 503, 200]
        stub.refuse("/v1/loads", body={"error": "busy"})
        async with client.get(f"{stub.address}/v1/loads") as reply:
            assert (reply.status, await reply.json()) == (500, {"error": "busy"})
        assert stub.calls == ["/pause_generation"]


async def test_a_script_that_is_over_is_an_error_of_the_server(client):
    async with SGLangStub(["one"]) as stub:
        await say(client, stub)
        status, reply = await say(client, stub, rid="t/1")
        assert (status, "session 't' wants more" in reply["error"]["message"]) == (500, True)


async def test_a_stub_in_a_process_of_its_own(client):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_stub, args=(Babble(length=3), theirs.send))
    process.start()
    try:
        address = await asyncio.to_thread(ours.recv)
        async with client.post(f"{address}/generate", json={"input_ids": [1]}) as reply:
            assert (await reply.json())["output_ids"] == Babble(length=3)([1])
    finally:
        process.terminate()
        await asyncio.to_thread(process.join, 10)
    assert process.exitcode == 0
