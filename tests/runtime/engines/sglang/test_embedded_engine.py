"""The engine of this process over a stand-in for `sglang.Engine`; the real one is in `tests/sglang`."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from icrl.errors import EngineError, WeightSyncError
from icrl.runtime.engines.sglang import embedded
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
        self.model_config = SimpleNamespace(vocab_size=100, context_len=50)
        self.known: dict[str, asyncio.Event] = {}
        self.arrival = asyncio.Event()
        self.loading = asyncio.Event()
        self.keys: list[str | None] = []
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
        for name in list(self.known) if abort_all else [rid]:
            if name in self.known and not self.deaf:
                self.known[name].set()

    async def generate_request(self, request: Any, _: None) -> Any:
        await asyncio.sleep(self.begins_after_s)
        self.keys.append(getattr(request, "extra_key", None))
        ended = self.known[request.rid] = asyncio.Event()
        self.arrival.set()
        await ended.wait()
        answer = reply([7, 8], self.finish)
        answer["meta_info"]["weight_versions"] = self.spans or None
        yield answer

    async def pause_generation(self, request: Any) -> None:
        self.calls.append(f"pause {request.mode}")

    async def continue_generation(self, request: Any) -> None:
        self.calls.append("continue")

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
    monkeypatch.setattr(embedded, "_ABORT_S", 0.3)
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
    assert len(engine._engine.aborts) > 1
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
    assert engine._engine.keys == [None, "icrl-1"]
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


@pytest.mark.parametrize("step", ["begin", "load", "end"])
async def test_after_a_refused_update_nothing_is_sampled_until_one_succeeds(engine: EmbeddedEngine, step: str) -> None:
    pending = await begun(engine)
    await engine.pause("in_place")
    engine._engine.refuses = step
    with pytest.raises(WeightSyncError, match=r"version 1 failed; what sglang 0\.5\.23 \(m\) holds is not known"):
        await engine.update(WEIGHTS, 1)
    assert ("end" in engine._engine.calls) == (step != "begin")
    await engine.resume()
    assert (await pending).finish_reason == "abort"
    with pytest.raises(EngineError, match="its weights are unknown: version 1 was sent after 0"):
        await asked(engine)
    engine._engine.refuses = ""
    await engine.update(WEIGHTS, 2)
    pending = await begun(engine)
    assert engine.info.weight_version == 2
    await engine.abort("r")
    await pending
    await engine.aclose()


async def test_weights_that_cannot_be_sent_change_nothing(engine: EmbeddedEngine) -> None:
    with pytest.raises(WeightSyncError, match=r"version 1 was not loaded; .* keeps version 0: w: has no values"):
        await engine.update([("w", torch.zeros(2, device="meta"))], 1)
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
