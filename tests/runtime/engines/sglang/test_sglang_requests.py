from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from icrl.errors import EngineError
from icrl.runtime.engines.protocol import LostRequest, Server
from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.runtime.engines.sglang.live import unique_rid
from icrl.testing import ByteTokenizer, Capacity, Faults, SGLangStub, fake_logprob
from icrl.trajectory import VersionSpan
from icrl.types import SamplingParams

TOKENIZER = ByteTokenizer()
PROMPT = TOKENIZER.encode("What is six times seven?")
SLOW = Capacity(tokens_per_s=1000, tokens_per_s_per_request=100)

WHOLE = SGLangConfig(stream_from=10**9, abort_s=0.5)
STREAMED = SGLangConfig(stream_from=1, chunk_tokens=2, abort_s=0.5)


@asynccontextmanager
async def serving(
    replies: Any = ("<answer> 42 </answer>",), *, config: SGLangConfig | None = None, **options: Any
) -> AsyncIterator[tuple[SGLangStub, SGLangEngine]]:
    async with SGLangStub(replies, **options) as stub:
        engine = SGLangEngine(stub.address, tokenizer=TOKENIZER, config=config, api_key=options.get("api_key"))
        await engine.start()
        try:
            yield stub, engine
        finally:
            await engine.aclose()


def forever(ids: Sequence[int]) -> Sequence[int]:
    return [65] * 100_000


async def reach(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (the stub has no events for what is waited for)
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("config", [WHOLE, STREAMED])
@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("version", ["0.5.19", "0.5.23"])
async def test_ids_come_back_as_they_were_sampled(config: SGLangConfig, incremental: bool, version: str) -> None:
    async with serving(config=config, incremental=incremental, version=version, api_key="k") as (stub, engine):
        reply = await engine.generate(PROMPT, SamplingParams(), request_id="t/0", session="t")
        assert isinstance(engine, Server)
    (rid,) = stub.seen
    assert stub.seen[rid] == tuple(PROMPT)
    assert reply.ids == stub.sampled[rid]
    assert TOKENIZER.decode(reply.ids) == "<answer> 42 </answer>"
    assert reply.ids[-1] in TOKENIZER.eos_ids
    assert reply.logprobs == tuple(fake_logprob(token, len(PROMPT) + i) for i, token in enumerate(reply.ids))
    assert reply.versions == (VersionSpan(version=0, start=0, end=len(reply.ids)),)
    assert (reply.finish_reason, reply.prompt_tokens) == ("eos", len(PROMPT))
    assert reply.wall_s > 0


async def test_a_stop_string_keeps_its_tokens_and_a_budget_ends() -> None:
    async with serving(["<search> x </search>", "y" * 50]) as (_, engine):
        params = SamplingParams(max_tokens=30, stop=("</search>",))
        stopped = await engine.generate(PROMPT, params, request_id="t/0")
        cut = await engine.generate(PROMPT, params, request_id="t/1")
    assert (TOKENIZER.decode(stopped.ids), stopped.finish_reason) == ("<search> x </search>", "stop")
    assert (len(cut.ids), cut.finish_reason) == (30, "length")


async def test_the_second_turn_finds_the_first_in_the_cache() -> None:
    async with serving(["one", "two"]) as (stub, engine):
        first = await engine.generate(PROMPT, SamplingParams(), request_id="t/0", session="t")
        turn = [*PROMPT, *first.ids, *TOKENIZER.encode(" more")]
        second = await engine.generate(turn, SamplingParams(), request_id="t/1", session="t")
    assert second.cached_tokens == len(PROMPT) + len(first.ids) - 1
    assert list(stub.seen.values()) == [tuple(PROMPT), tuple(turn)]


async def test_the_budget_ends_with_the_context() -> None:
    async with serving(forever, context_limit=60) as (_, engine):
        reply = await engine.generate(PROMPT, SamplingParams(max_tokens=500), request_id="r")
        assert len(reply.ids) + len(PROMPT) == engine.info.context_limit <= 60
        with pytest.raises(EngineError, match="the context limit is"):
            await engine.generate([65] * engine.info.context_limit, SamplingParams(), request_id="r")


@pytest.mark.parametrize("wrong", [TOKENIZER.vocab_size, -1, 2**40])
async def test_an_id_outside_the_vocabulary_never_reaches_the_server(wrong: int) -> None:
    async with serving() as (stub, engine):
        for ids in ([wrong], [*PROMPT, wrong]):
            with pytest.raises(EngineError, match="outside the vocabulary"):
                await engine.generate(ids, SamplingParams(), request_id="r", session="s")
        assert (stub.requests, stub.deaths) == ([], 0)


async def test_deltas_are_handed_out_in_order() -> None:
    seen: list[list[int]] = []
    async with serving(capacity=Capacity()) as (_, engine):
        reply = await engine.generate(
            PROMPT, SamplingParams(), request_id="r", on_delta=lambda new: seen.append([*new])
        )
    assert tuple(itertools.chain(*seen)) == reply.ids
    assert len(seen) > 2


@pytest.mark.parametrize("config", [WHOLE, STREAMED])
async def test_an_abort_returns_what_there_is(config: SGLangConfig) -> None:
    async with serving(forever, config=config, capacity=SLOW) as (stub, engine):
        pending = asyncio.create_task(engine.generate(PROMPT, SamplingParams(max_tokens=5000), request_id="r"))
        await reach(lambda: bool(stub.live))
        await asyncio.sleep(0.05)
        await engine.abort("r")
        reply = await pending
    assert reply.finish_reason == "abort"
    assert reply.ids == tuple(stub.requests[0].sampled)
    assert 0 < len(reply.ids) < 5000
    assert len(reply.logprobs) == len(reply.ids) == reply.versions[-1].end


@pytest.mark.parametrize("config", [WHOLE, STREAMED])
async def test_an_abort_overtakes_the_request(config: SGLangConfig) -> None:
    async with serving(forever, config=config, capacity=SLOW) as (stub, engine):
        pending = asyncio.create_task(engine.generate(PROMPT, SamplingParams(max_tokens=5000), request_id="r"))
        await asyncio.sleep(0)
        await engine.abort("r")
        await engine.abort("r")
        await engine.abort("unknown")
        assert (await pending).finish_reason == "abort"
        assert not stub.live


@pytest.mark.parametrize("config", [WHOLE, STREAMED])
async def test_an_abort_does_not_wait_for_a_server_that_is_stuck(config: SGLangConfig) -> None:
    async with serving(config=config) as (stub, engine):
        await engine.client.post("/pause_generation", {"mode": "in_place"}, timeout_s=5)
        pending = asyncio.create_task(engine.generate(PROMPT, SamplingParams(), request_id="r"))
        await reach(lambda: bool(stub.requests))
        await engine.abort("r")
        reply = await pending
    assert (reply.ids, reply.finish_reason, reply.versions) == ((), "abort", ())


async def test_somebody_elses_abort_is_an_abort() -> None:
    async with serving(forever, capacity=SLOW) as (stub, engine):
        pending = asyncio.create_task(engine.generate(PROMPT, SamplingParams(), request_id="r"))
        await reach(lambda: bool(stub.live))
        await engine.client.post("/abort_request", {"abort_all": True}, timeout_s=5)
        assert (await pending).finish_reason == "abort"


@pytest.mark.parametrize("config", [WHOLE, STREAMED])
async def test_cancelling_frees_the_server_and_leaves_nothing(config: SGLangConfig) -> None:
    async with serving(forever, config=config, capacity=SLOW) as (stub, engine):
        before = asyncio.all_tasks()
        pending = asyncio.create_task(engine.generate(PROMPT, SamplingParams(max_tokens=5000), request_id="r"))
        await reach(lambda: bool(stub.live))
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        await reach(lambda: not stub.live)
        await engine.aclose()
        assert "/abort_request" in stub.calls
        assert {task for task in asyncio.all_tasks() - before if "icrl.runtime" in repr(task)} == set()


async def test_an_observer_that_raises_ends_the_request() -> None:
    def observe(new: Sequence[int]) -> None:
        raise KeyError("observer")

    async with serving(forever, capacity=SLOW) as (stub, engine):
        with pytest.raises(KeyError, match="observer"):
            await engine.generate(PROMPT, SamplingParams(max_tokens=5000), request_id="r", on_delta=observe)
        await reach(lambda: not stub.live)
        await engine.aclose()


async def test_closing_returns_what_there_is_and_refuses_the_rest() -> None:
    async with serving(forever, capacity=SLOW) as (stub, engine):
        pending = [
            asyncio.create_task(engine.generate(PROMPT, SamplingParams(max_tokens=5000), request_id=f"r/{i}"))
            for i in range(5)
        ]
        await reach(lambda: len(stub.live) == 5)
        await engine.aclose()
        assert [(await task).finish_reason for task in pending] == ["abort"] * 5
        with pytest.raises(EngineError, match="is closed"):
            await engine.generate(PROMPT, SamplingParams(), request_id="r")


async def test_a_request_id_is_used_by_one_request_at_a_time() -> None:
    async with serving(["a", "b"]) as (stub, engine):
        both = [engine.generate(PROMPT, SamplingParams(), request_id="t/0") for _ in range(2)]
        _, second = await asyncio.gather(*both, return_exceptions=True)
        assert isinstance(second, EngineError)
        assert "request id 't/0' is in use" in str(second)
        await engine.generate(PROMPT, SamplingParams(), request_id="t/0")
    assert len(stub.seen) == 2


def test_no_name_at_the_server_begins_another() -> None:
    names = [unique_rid(request) for request in ("t/1", "t/1", "t/10", "", "t") * 20]
    assert not any(a != b and b.startswith(a) for a in names for b in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("fault", ["resets", "dies_mid_stream"])
async def test_a_reply_that_breaks_off_is_a_lost_request(fault: str) -> None:
    async with serving(["a", "b"], config=WHOLE, faults=Faults(at={0: fault, 1: fault})) as (stub, engine):
        with pytest.raises(LostRequest) as caught:
            await engine.generate(PROMPT, SamplingParams(), request_id="r")
    # A reset of a connection that was used before looks like the end of its keep-alive: it is tried once more.
    assert len(stub.requests) == (2 if fault == "resets" else 1)
    assert caught.value.partial.finish_reason == "abort"
    assert (caught.value.partial.ids, caught.value.retryable) == ((), True)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("fault", ["dies_mid_stream", "truncated"])
async def test_a_stream_that_breaks_off_gives_what_had_arrived(fault: str, incremental: bool) -> None:
    async with serving(config=STREAMED, faults=Faults(at={0: fault}), incremental=incremental, capacity=Capacity()) as (
        _,
        engine,
    ):
        with pytest.raises(LostRequest) as caught:
            await engine.generate(PROMPT, SamplingParams(max_tokens=16), request_id="r")
        whole = TOKENIZER.encode("<answer> 42 </answer>")
    partial = caught.value.partial
    assert 0 < len(partial.ids) < len(whole)
    assert list(partial.ids) == whole[: len(partial.ids)]
    assert partial.logprobs == tuple(fake_logprob(t, len(PROMPT) + i) for i, t in enumerate(partial.ids))
    assert partial.versions == (VersionSpan(version=0, start=0, end=len(partial.ids)),)


async def test_a_server_that_dies_loses_its_requests_and_can_be_connected_again() -> None:
    async with serving(forever, config=STREAMED, capacity=SLOW) as (stub, engine):
        pending = asyncio.create_task(engine.generate(PROMPT, SamplingParams(max_tokens=64), request_id="r"))
        await reach(lambda: bool(stub.live))
        await asyncio.sleep(0.2)
        stub.kill()
        with pytest.raises(LostRequest) as caught:
            await pending
        with pytest.raises(EngineError, match="cannot be reached") as refused:
            await engine.generate(PROMPT, SamplingParams(), request_id="r")
        with pytest.raises(EngineError, match="cannot be reached"):
            await engine.probe()
        await stub.restart()
        await engine.start()
        reply = await engine.generate(PROMPT, SamplingParams(max_tokens=3), request_id="r")
    assert caught.value.partial.ids
    assert refused.value.retryable
    assert reply.ids == (65, 65, 65)


@pytest.mark.parametrize("config", [WHOLE, STREAMED])
async def test_silence_is_a_lost_request(config: SGLangConfig) -> None:
    quick = SGLangConfig(stream_from=config.stream_from, stall_s=0.1, abort_s=0.5)
    async with serving(config=quick) as (stub, engine):
        await engine.client.post("/pause_generation", {"mode": "in_place"}, timeout_s=5)
        with pytest.raises(LostRequest, match="no answer in time"):
            await engine.generate(PROMPT, SamplingParams(), request_id="r")
        await engine.aclose()
        assert "/abort_request" in stub.calls


@pytest.mark.parametrize(("fault", "status"), [("error_500", 500), ("error_429", 429), ("garbage", None)])
async def test_a_failed_request_may_be_tried_again(fault: str, status: int | None) -> None:
    async with serving(["a", "b"], config=WHOLE, faults=Faults(at={0: fault})) as (_, engine):
        with pytest.raises(EngineError) as caught:
            await engine.generate(PROMPT, SamplingParams(), request_id="r")
        assert (caught.value.status, caught.value.retryable) == (status, True)
        assert not isinstance(caught.value, LostRequest)
        assert (await engine.generate(PROMPT, SamplingParams(), request_id="r")).finish_reason == "eos"


async def test_sampled_ids_outside_the_vocabulary_are_refused() -> None:
    async with SGLangStub([[65, 300, 66]], vocab_size=1000) as stub:
        engine = SGLangEngine(stub.address, tokenizer=TOKENIZER)
        await engine.start()
        with pytest.raises(EngineError, match="sampled id 300 is outside"):
            await engine.generate(PROMPT, SamplingParams(), request_id="r")
        await engine.aclose()


@pytest.mark.parametrize("config", [WHOLE, STREAMED])
async def test_a_request_that_lives_through_an_update_says_which_weights_sampled_what(
    config: SGLangConfig, tmp_path: Path
) -> None:
    slow = Capacity(tokens_per_s=1000, tokens_per_s_per_request=20)
    async with serving(lambda ids: [65] * 30, config=config, capacity=slow) as (stub, engine):
        pending = asyncio.create_task(engine.generate(PROMPT, SamplingParams(), request_id="r"))
        await reach(lambda: bool(stub.live))
        await asyncio.sleep(0.2)
        await engine.client.post("/pause_generation", {"mode": "in_place"}, timeout_s=5)
        await engine.client.post(
            "/update_weights_from_disk",
            {"model_path": str(tmp_path), "weight_version": "3", "flush_cache": False},
            timeout_s=5,
        )
        stub.capacity = None
        await engine.client.post("/continue_generation", timeout_s=5)
        reply = await pending
    assert [span.version for span in reply.versions] == [0, 3]
    assert reply.versions[0].end == reply.versions[1].start
    assert (reply.versions[0].start, reply.versions[1].end) == (0, len(reply.ids))


async def test_requests_after_an_update_share_no_cache_with_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(["a", "b", "c"]) as (_, engine):
        sent: list[bytes] = []
        post = engine.client.post

        async def spy(path: str, payload: Any = b"{}", *, timeout_s: float) -> bytes:
            sent.extend([payload] if path == "/generate" else [])
            return await post(path, payload, timeout_s=timeout_s)

        monkeypatch.setattr(engine.client, "post", spy)
        await engine.generate(PROMPT, SamplingParams(), request_id="r")
        await engine.pause()
        await engine.resume()
        await engine.generate(PROMPT, SamplingParams(), request_id="r")
        keys = [json.loads(payload).get("extra_key") for payload in sent]
    assert keys[0] is None
    assert keys[1] is not None


async def test_unknown_weights_sample_nothing() -> None:
    async with serving() as (stub, engine):
        await engine.pause()
        await engine.resume()
        assert engine._weights is not None
        engine._weights.fault = "half of it was sent"
        with pytest.raises(EngineError, match="weights are unknown: half of it was sent"):
            await engine.generate(PROMPT, SamplingParams(), request_id="r")
        assert stub.requests == []


async def test_load_is_what_the_server_says() -> None:
    async with serving(forever, capacity=SLOW) as (stub, engine):
        assert (await engine.probe()).running == 0
        pending = asyncio.create_task(engine.generate(PROMPT, SamplingParams(), request_id="r"))
        await reach(lambda: bool(stub.live))
        load = await engine.probe()
        assert (load.running, load.waiting) == (1, 0)
        assert 0 <= load.kv_usage < 1
        await engine.abort("r")
        await pending


async def test_nothing_is_known_before_connecting() -> None:
    engine = SGLangEngine("http://127.0.0.1:1")
    for ask in (lambda: engine.info, lambda: engine.facts):
        with pytest.raises(EngineError, match=r"call start\(\) first"):
            ask()
    with pytest.raises(EngineError, match=r"call start\(\) first"):
        await engine.resume()
    await engine.aclose()


async def test_a_connection_finds_no_cache_that_another_left_behind() -> None:
    async with serving(["a"] * 9) as (stub, first):
        second = SGLangEngine(stub.address, tokenizer=TOKENIZER)
        third = SGLangEngine(stub.address, tokenizer=TOKENIZER)
        keys = []
        for engine in (first, second, third):
            await engine.start()
            for _ in range(2):
                await engine.generate(PROMPT, SamplingParams(), request_id="r")
                await engine.pause()
                await engine.client.post(
                    "/update_weight_version", {"new_version": "0", "abort_all_requests": False}, timeout_s=5
                )
                await engine.resume()
        keys = [asked.key for asked in stub.requests]
        for engine in (second, third):
            await engine.aclose()
    assert len(set(keys)) == len(keys) == 6


async def test_what_was_checked_for_one_server_is_checked_again_for_the_next() -> None:
    async with SGLangStub(["a", "b"], vocab_size=1000) as stub:
        engine = SGLangEngine(stub.address, tokenizer=TOKENIZER)
        await engine.start()
        engine._facts = replace(engine.facts, vocab_size=1000)
        assert engine._info is not None
        engine._info = replace(engine._info, vocab_size=1000)
        await engine.generate([*PROMPT, 900], SamplingParams(), request_id="r", session="s")
        await engine.start()  # the server that is there now has a smaller vocabulary
        with pytest.raises(EngineError, match=r"token id 900 .* is outside"):
            await engine.generate([*PROMPT, 900, 65], SamplingParams(), request_id="r", session="s")
        await engine.aclose()


async def test_a_restarted_server_does_not_hold_what_it_held() -> None:
    async with serving(["a"]) as (stub, _):
        engine = SGLangEngine(stub.address, tokenizer=TOKENIZER)
        await engine.client.post("/update_weight_version", {"new_version": "7"}, timeout_s=5)
        await engine.start()
        assert engine.info.weight_version == 7
        stub.kill()
        await stub.restart()
        await engine.start()
        assert engine.info.weight_version == 0
        await engine.aclose()


async def test_closing_waits_for_what_is_told_while_it_closes() -> None:
    async with serving(forever, config=STREAMED, capacity=SLOW) as (stub, engine):
        pending = asyncio.create_task(engine.generate(PROMPT, SamplingParams(max_tokens=5000), request_id="r"))
        await reach(lambda: bool(stub.live))
        await asyncio.sleep(0.05)
        stub.kill()
        closing = asyncio.create_task(engine.aclose())
        assert (await pending).finish_reason == "abort"
        await closing
        assert not engine._aborts._tasks
