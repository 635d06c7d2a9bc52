"""The engine of this process over a stand-in for `sglang.Engine`; the real one is in `tests/sglang`."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from icrl.errors import EngineError, WeightSyncError
from icrl.runtime.engines.protocol import FOREIGN, LostRequest
from icrl.runtime.engines.sglang import embedded, embedded_weights
from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.runtime.engines.sglang.embedded import EmbeddedEngine
from icrl.types import SamplingParams


def reply(ids: list[int], finish: dict[str, Any] | None) -> dict[str, Any]:
    scored = [[-0.5, token, None] for token in ids]
    meta = {"finish_reason": finish, "completion_tokens": len(ids), "output_token_logprobs": scored}
    return {"text": "", "output_ids": ids, "meta_info": meta}


class FakeSGLang:
    """Answers when it is told to; forgets aborts of what it does not know yet, as SGLang does."""

    def __init__(self, *, model_path: str) -> None:
        self.tokenizer_manager = self
        self.server_args = SimpleNamespace(enable_deterministic_inference=True)
        self.rid_to_state: dict[str, Any] = {}
        self.model_config = SimpleNamespace(vocab_size=100, context_len=50)
        self.known: dict[str, asyncio.Event] = {}
        self.arrival = asyncio.Event()
        self.loading = asyncio.Event()
        self.requests: list[Any] = []
        self.aborts: list[str] = []
        self.begins_after_s = 0.0
        self.deaf = False
        self.finish: dict[str, Any] = {"type": "abort", "message": "Aborted"}
        self.spans: list[dict[str, Any]] = []
        self.calls: list[Any] = []
        self.refuses = ""
        self.flushes = True
        self.closed = False

    def abort_request(self, *, rid: str = "", abort_all: bool = False) -> None:
        self.aborts.append(rid)
        state = self.rid_to_state.get(rid, SimpleNamespace(abort_sent=False))
        if state.abort_sent:
            return
        state.abort_sent = True
        for name in list(self.known) if abort_all else [rid]:
            if name in self.known and not self.deaf:
                self.known[name].set()

    async def generate_request(self, request: Any, _: None) -> Any:
        state = self.rid_to_state[request.rid] = SimpleNamespace(dispatched=False, abort_sent=False)
        await asyncio.sleep(self.begins_after_s)
        self.requests.append(request)
        ended = self.known[request.rid] = asyncio.Event()
        state.dispatched = True
        self.arrival.set()
        await ended.wait()
        answer = reply([7, 8], self.finish)
        answer["meta_info"]["weight_versions"] = self.spans or None
        yield answer

    async def pause_generation(self, request: Any) -> None:
        self.calls.append(f"pause {request.mode}")

    async def continue_generation(self, request: Any) -> None:
        self.calls.append("continue")

    async def update_weight_version(self, request: Any) -> None:
        self.calls.append(f"call them {request.new_version}")

    async def begin_weight_update(self, request: Any, _: None) -> tuple[bool, str]:
        return await self.done("begin")

    async def update_weights_from_tensor(self, request: Any, _: None) -> tuple[bool, str]:
        self.loading.set()
        return await self.done(f"load {request.weight_version}")

    async def end_weight_update(self, request: Any, _: None) -> tuple[bool, str]:
        return await self.done("end")

    async def flush_cache(self) -> Any:
        await self.done("flush")
        return SimpleNamespace(success=self.flushes)

    async def done(self, what: str) -> tuple[bool, str]:
        await asyncio.sleep(0.01)
        self.calls.append(what)
        return what.split()[0] != self.refuses, "no"

    def _serialize_tensors_per_rank(self, weights: Any, _: None) -> Any:
        return [name for name, _ in weights]

    def shutdown(self) -> None:
        self.closed = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> EmbeddedEngine:
    monkeypatch.setitem(sys.modules, "sglang", SimpleNamespace(Engine=FakeSGLang))
    messages = ModuleType("sglang.srt.managers.io_struct")
    messages.__getattr__ = lambda name: SimpleNamespace  # type: ignore[method-assign]
    managers = SimpleNamespace(io_struct=messages)
    monkeypatch.setitem(sys.modules, "sglang.srt", SimpleNamespace(managers=managers))
    monkeypatch.setitem(sys.modules, "sglang.srt.managers", managers)
    monkeypatch.setitem(sys.modules, messages.__name__, messages)
    monkeypatch.setattr(embedded, "_installed", lambda: "0.5.23")
    monkeypatch.setattr(embedded, "_CONFIG", SGLangConfig(abort_s=0.3))
    return EmbeddedEngine("m")


def asked(engine: EmbeddedEngine) -> asyncio.Task[Any]:
    return asyncio.create_task(engine.generate([5, 6], SamplingParams(), request_id="r"))


async def test_an_abort_overtakes_the_request(engine: EmbeddedEngine) -> None:
    engine._engine.begins_after_s = 0.1
    pending = asked(engine)
    await asyncio.sleep(0)
    await engine.abort("r")
    generation = await pending
    assert (generation.ids, generation.finish_reason) == ((7, 8), "abort")
    assert len(engine._engine.aborts) == 1
    await engine.aclose()


async def test_closing_does_not_wait_for_what_does_not_end(engine: EmbeddedEngine) -> None:
    engine._engine.deaf = True
    pending = asked(engine)
    await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        await engine.aclose()
    assert (await pending).ids == ()
    assert engine._engine.closed
    with pytest.raises(EngineError, match="is closed"):
        await asked(engine)


async def test_an_abort_that_is_an_error_is_no_generation(engine: EmbeddedEngine) -> None:
    engine._engine.finish = {"type": "abort", "message": "out of memory", "status_code": 500, "err_type": "Internal"}
    pending = asked(engine)
    await asyncio.sleep(0.01)
    for ended in engine._engine.known.values():
        ended.set()
    with pytest.raises(EngineError, match="out of memory"):
        await pending
    await engine.aclose()


async def test_a_reply_of_another_shape_is_an_error_of_the_engine(engine: EmbeddedEngine) -> None:
    engine._engine.finish = {"type": 5}
    pending = asked(engine)
    await asyncio.sleep(0.01)
    await engine.abort("r")
    with pytest.raises(EngineError, match="Expected `str`"):
        await pending
    await engine.aclose()


async def test_cancelling_ends_it_at_sglang(engine: EmbeddedEngine) -> None:
    pending = asked(engine)
    await asyncio.sleep(0.01)
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending
    assert len(engine._engine.aborts) == 1
    await engine.aclose()


WEIGHTS = [("w", torch.zeros(2))]


async def begun(engine: EmbeddedEngine) -> asyncio.Task[Any]:
    engine._engine.arrival.clear()
    pending = asked(engine)
    await engine._engine.arrival.wait()
    return pending


async def test_an_update_in_place_says_which_tokens_are_whose_and_keeps_new_requests_from_stale_keys(
    engine: EmbeddedEngine,
) -> None:
    """SGLang counts the token that was under way at the pause to the new weights; the old ones sampled it."""
    engine._engine.flushes = False
    engine._engine.spans = [{"version": "1", "start": 0, "end": 2}]
    pending = await begun(engine)
    await engine.pause("in_place")
    await engine.update(iter(WEIGHTS), 1)
    await engine.resume()
    assert engine._engine.calls == ["pause in_place", "begin", "load 1", "end", "flush", "continue"]
    assert engine.info.weight_version == 1
    await engine.abort("r")
    assert [(span.version, span.start, span.end) for span in (await pending).versions] == [(0, 0, 1), (1, 1, 2)]
    pending = await begun(engine)
    assert [getattr(request, "extra_key", None) for request in engine._engine.requests] == [None, "icrl-1"]
    await engine.abort("r")
    assert [(span.version, span.start, span.end) for span in (await pending).versions] == [(1, 0, 2)]
    await engine.aclose()


async def test_where_all_keys_were_dropped_the_tokens_are_what_sglang_says(engine: EmbeddedEngine) -> None:
    engine._engine.spans = [{"version": "1", "start": 0, "end": 2}]
    pending = await begun(engine)
    await engine.pause("retract")
    await engine.update(WEIGHTS, 1)
    await engine.resume()
    await engine.abort("r")
    assert [(span.version, span.start, span.end) for span in (await pending).versions] == [(1, 0, 2)]
    await engine.aclose()


async def test_a_cancelled_update_waits_for_the_thread_that_reads_the_weights(engine: EmbeddedEngine) -> None:
    """Training changes them afterwards."""
    loop, reading, may_end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slowly() -> Any:
        loop.call_soon_threadsafe(reading.set)
        assert may_end.wait(30)
        yield from WEIGHTS

    updating = asyncio.create_task(engine.update(slowly(), 1))
    await reading.wait()
    updating.cancel()
    await asyncio.sleep(0.05)
    assert not updating.done()
    may_end.set()
    await asyncio.wait([updating], timeout=10)
    assert updating.cancelled()
    assert (engine._engine.calls, engine.info.weight_version) == ([], 0)
    await engine.aclose()


@pytest.mark.parametrize("step", ["begin", "load", "end"])
async def test_after_a_refused_update_nothing_is_sampled_until_one_succeeds(engine: EmbeddedEngine, step: str) -> None:
    pending = await begun(engine)
    await engine.pause("in_place")
    engine._engine.refuses = step
    with pytest.raises(WeightSyncError, match=r"version 1 failed; what sglang 0\.5\.23 \(m\) holds is not known"):
        await engine.update(WEIGHTS, 1)
    assert ("end" in engine._engine.calls) == (step != "begin")
    parked = asyncio.create_task(engine.generate([5], SamplingParams(), request_id="parked"))
    await asyncio.sleep(0.01)
    await engine.resume()
    assert engine._engine.calls[-2:] == ["call them mixed", "continue"]
    assert (await pending).finish_reason == "abort"
    with pytest.raises(EngineError, match="its weights are unknown"):
        await parked
    with pytest.raises(EngineError, match="its weights are unknown: version 1 was sent after 0"):
        await asked(engine)
    engine._engine.refuses = ""
    await engine.pause()
    await engine.update(WEIGHTS, 2)
    await engine.resume()
    pending = await begun(engine)
    assert engine.info.weight_version == 2
    await engine.abort("r")
    await pending
    await engine.aclose()


async def test_what_unknown_weights_have_sampled_is_lost(engine: EmbeddedEngine) -> None:
    engine._engine.spans = [{"version": "default", "start": 0, "end": 1}, {"version": "mixed", "start": 1, "end": 2}]
    pending = await begun(engine)
    await engine.abort("r")
    with pytest.raises(LostRequest, match="unknown weights: an update failed half-way") as lost:
        await pending
    assert [(span.version, span.start) for span in lost.value.partial.versions] == [(0, 0), (FOREIGN, 1)]
    await engine.aclose()


async def test_two_updates_in_one_pause_leave_the_token_under_way_to_the_first_weights(engine: EmbeddedEngine) -> None:
    engine._engine.flushes = False
    engine._engine.spans = [{"version": "2", "start": 0, "end": 2}]
    pending = await begun(engine)
    await engine.pause()
    await engine.update(WEIGHTS, 1)
    await engine.update(WEIGHTS, 2)
    await engine.resume()
    await engine.abort("r")
    assert [(span.version, span.start, span.end) for span in (await pending).versions] == [(0, 0, 1), (2, 1, 2)]
    await engine.aclose()


async def test_what_is_asked_while_weights_change_is_sent_afterwards_and_can_be_aborted(engine: EmbeddedEngine) -> None:
    await engine.pause()
    pending, other = asked(engine), asyncio.create_task(engine.generate([5], SamplingParams(), request_id="other"))
    await asyncio.sleep(0.01)
    assert engine._engine.requests == []
    await engine.abort("r")
    assert ((await pending).ids, engine._engine.aborts) == ((), [])
    await engine.update(WEIGHTS, 1)
    await engine.resume()
    await engine._engine.arrival.wait()
    await engine.abort("other")
    assert (await other).ids == (7, 8)
    await engine.aclose()


async def test_requests_are_streamed_and_seeded(engine: EmbeddedEngine) -> None:
    pending = await begun(engine)
    await engine.abort("r")
    await pending
    (request,) = engine._engine.requests
    assert (request.stream, request.sampling_params["sampling_seed"]) == (True, 0)
    assert request.sampling_params["stream_interval"] == 1024
    await engine.aclose()


async def test_closing_waits_for_an_update(engine: EmbeddedEngine) -> None:
    updating = asyncio.create_task(engine.update(WEIGHTS, 1))
    await engine._engine.loading.wait()
    await engine.aclose()
    assert updating.done()
    assert engine._engine.calls == ["begin", "load 1", "end", "flush"]


async def test_a_pause_that_does_not_end_is_given_up(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever(request: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(embedded_weights, "CONTROL_S", 0.05)
    monkeypatch.setattr(engine._engine, "pause_generation", forever)
    with pytest.raises(WeightSyncError, match=r"no answer in 0\.05 s; .* keeps version 0"):
        await engine.pause("abort")
    await engine.resume()
    await engine.aclose()


async def test_it_goes_on_even_if_its_weights_cannot_be_named(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forever(request: Any) -> None:
        await asyncio.Event().wait()

    await engine.pause()
    engine._engine.refuses = "load"
    with pytest.raises(WeightSyncError):
        await engine.update(WEIGHTS, 1)
    monkeypatch.setattr(embedded_weights, "CONTROL_S", 0.05)
    monkeypatch.setattr(engine._engine, "update_weight_version", forever)
    with pytest.raises(WeightSyncError, match="no answer"):
        await engine.resume()
    assert engine._engine.calls[-1] == "continue"
    with pytest.raises(EngineError, match="its weights are unknown"):
        await asked(engine)
    await engine.aclose()


async def test_weights_that_cannot_be_sent_change_nothing(engine: EmbeddedEngine) -> None:
    meta, whole = torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.int64)
    for weights, why in (([("w", meta)], "w: has no values"), ([], "no weights"), ([("w", whole)], "w: torch.int64")):
        with pytest.raises(WeightSyncError, match=rf"version 1 was not loaded; .* keeps version 0: {why}"):
            await engine.update(weights, 1)
    assert engine._engine.calls == []
    await engine.abort("unknown")
    await engine.aclose()


async def test_a_cancelled_update_is_finished_first(engine: EmbeddedEngine) -> None:
    """SGLang's loops break where somebody stops listening to them."""
    updating = asyncio.create_task(engine.update(WEIGHTS, 1))
    await engine._engine.loading.wait()
    updating.cancel()
    await asyncio.wait([updating], timeout=10)
    assert updating.cancelled()
    assert engine._engine.calls == ["begin", "load 1", "end", "flush"]
    assert engine.info.weight_version == 1
    await engine.aclose()


async def test_its_use_is_counted(engine: EmbeddedEngine) -> None:
    before = engine.meter.read()
    pending = await begun(engine)
    await engine.abort("r")
    await pending
    after = engine.meter.read()
    assert after.sampled_tokens - before.sampled_tokens == 2
    assert after.busy_s > before.busy_s
    await engine.aclose()
