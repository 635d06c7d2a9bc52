"""The engine of this process over a stand-in for `sglang.Engine`; the real one is in `tests/sglang`."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from icrl.errors import EngineError
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
        config = SimpleNamespace(vocab_size=100, context_len=50)
        self.tokenizer_manager = SimpleNamespace(model_config=config, abort_request=self.abort)
        self.known: dict[str, asyncio.Event] = {}
        self.aborts: list[str] = []
        self.begins_after_s = 0.0
        self.deaf = False
        self.finish: dict[str, Any] = {"type": "abort", "message": "Aborted"}
        self.closed = False

    def abort(self, *, rid: str) -> None:
        self.aborts.append(rid)
        if rid in self.known and not self.deaf:
            self.known[rid].set()

    async def async_generate(self, **request: Any) -> dict[str, Any]:
        await asyncio.sleep(self.begins_after_s)
        ended = self.known[request["rid"]] = asyncio.Event()
        await ended.wait()
        return reply([7, 8], self.finish)

    def shutdown(self) -> None:
        self.closed = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> EmbeddedEngine:
    monkeypatch.setitem(sys.modules, "sglang", SimpleNamespace(Engine=FakeSGLang))
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
