from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from icrl.errors import ConfigError, EngineError, WeightSyncError
from icrl.runtime.engines.local import LocalEngine, LocalEngineConfig
from icrl.runtime.engines.protocol import Engine
from icrl.runtime.engines.sampling import as_seeds, uniforms
from icrl.trajectory import Generation, VersionSpan
from icrl.types import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=16)


def prompt(seed: int, length: int = 12) -> list[int]:
    return random.Random(seed).choices(range(94), k=length)


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "icrl-engine"]


@torch.inference_mode()
def recompute(model: Any, ids: Sequence[int], generation: Generation, temperature: float = 1.0) -> list[float]:
    """Logprobs of a generation from one ordinary forward pass."""
    logits = model(torch.tensor([[*ids, *generation.ids]])).logits[0, len(ids) - 1 : -1]
    logprobs = (logits / (temperature or 1)).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(generation.ids)[:, None])[:, 0].tolist()


def assert_crosses_a_boundary(model: Any, ids: Sequence[int], one: Generation, two: Generation, seed: int) -> None:
    """Where two runs of a request part, the uniform number must lie on a boundary of the distribution."""
    at = next(i for i, pair in enumerate(zip(one.ids, two.ids, strict=False)) if pair[0] != pair[1])
    with torch.inference_mode():
        logits = model(torch.tensor([[*ids, *one.ids[:at]]])).logits[0, -1]
    cumulative = logits.double().softmax(-1).cumsum(-1)
    u = uniforms(as_seeds([seed]), as_seeds([at]))[0]
    assert (cumulative - u).abs().min() < 1e-5


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Llama"])
async def test_greedy_equals_generate_and_logprobs_equal_a_full_forward(
    saved: Callable[..., str], reference: Callable[..., Any], kind: str
) -> None:
    engine, model = LocalEngine(LocalEngineConfig(model=saved(kind), threads=1)), reference(kind)
    prompts = [prompt(i, 3 + 5 * i) for i in range(6)]
    calls = [engine.generate(ids, GREEDY, request_id=str(i)) for i, ids in enumerate(prompts)]
    for ids, generation in zip(prompts, await asyncio.gather(*calls), strict=True):
        inputs = torch.tensor([ids])
        expected = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=16, do_sample=False)
        assert list(generation.ids) == expected[0, len(ids) :].tolist()
        assert generation.logprobs == pytest.approx(recompute(model, ids, generation), abs=1e-4)
        assert generation.finish_reason == "length"
        assert (generation.prompt_tokens, generation.cached_tokens) == (len(ids), 0)
    await engine.aclose()


@pytest.mark.usefixtures("attention")
async def test_requests_join_and_leave_in_mid_flight_without_changing_each_other(
    engine: LocalEngine, reference: Callable[..., Any]
) -> None:
    assert isinstance(engine, Engine)
    requests = {
        str(i): (prompt(i, 4 + 3 * i), SamplingParams(seed=i, max_tokens=5 + 4 * (i % 4), temperature=0.5 + i / 8))
        for i in range(12)
    }

    async def late(name: str) -> Generation:
        for _ in range(3 * int(name)):
            await asyncio.sleep(0)
        ids, params = requests[name]
        return await engine.generate(ids, params, request_id=name, shared_prefix=int(name) % 3)

    together = await asyncio.gather(*map(late, requests))
    for name, generation in zip(requests, together, strict=True):
        ids, params = requests[name]
        alone = await engine.generate(ids, params, request_id="alone")
        expected = recompute(reference(), ids, generation, params.temperature)
        assert generation.logprobs == pytest.approx(expected, abs=1e-4)
        assert len(generation.ids) == params.max_tokens
        if alone.ids != generation.ids:
            assert_crosses_a_boundary(reference(), ids, generation, alone, params.seed)


async def test_a_stream_depends_on_its_seed(engine: LocalEngine) -> None:
    seeds = [1, 2, 1]
    calls = [
        engine.generate(prompt(0), SamplingParams(seed=seed, max_tokens=20, temperature=2.0), request_id=str(i))
        for i, seed in enumerate(seeds)
    ]
    one, two, again = await asyncio.gather(*calls)
    assert one.ids == again.ids != two.ids


@pytest.mark.usefixtures("attention")
async def test_a_shared_prefix_is_run_once_and_changes_nothing(
    engine: LocalEngine, reference: Callable[..., Any]
) -> None:
    shared = prompt(1, 20)
    prompts = [shared + prompt(10 + i, 1 + i) for i in range(6)]
    calls = [engine.generate(ids, GREEDY, request_id=str(i), shared_prefix=20) for i, ids in enumerate(prompts)]
    for ids, generation in zip(prompts, await asyncio.gather(*calls), strict=True):
        plain = await engine.generate(ids, GREEDY, request_id="plain")
        assert generation.ids == plain.ids
        assert generation.logprobs == pytest.approx(recompute(reference(), ids, generation), abs=1e-4)
        assert (generation.cached_tokens, plain.cached_tokens) == (20, 0)


async def test_a_prefix_may_be_announced_for_the_whole_prompt(engine: LocalEngine) -> None:
    ids = prompt(3, 9)
    whole = await engine.generate(ids, GREEDY, request_id="a", shared_prefix=9)
    assert whole.cached_tokens == 8
    assert whole.ids == (await engine.generate(ids, GREEDY, request_id="b")).ids


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("shared_prefix", [0, 7])
async def test_the_next_request_of_a_session_runs_only_new_tokens(
    engine: LocalEngine, reference: Callable[..., Any], shared_prefix: int
) -> None:
    ids = prompt(4)
    first = await engine.generate(ids, GREEDY, request_id="1", session="s", shared_prefix=shared_prefix)
    longer = [*ids, *first.ids, *prompt(5, 6)]
    second = await engine.generate(longer, GREEDY, request_id="2", session="s", shared_prefix=shared_prefix)
    assert second.cached_tokens == len(ids) + len(first.ids) - 1
    assert second.ids == (await engine.generate(longer, GREEDY, request_id="3")).ids
    assert second.logprobs == pytest.approx(recompute(reference(), longer, second), abs=1e-4)

    changed = [*ids[:-2], *prompt(6, 9)]
    third = await engine.generate(changed, GREEDY, request_id="4", session="s", shared_prefix=shared_prefix)
    assert len(ids) - 2 <= third.cached_tokens < len(ids)
    assert third.ids == (await engine.generate(changed, GREEDY, request_id="5")).ids


async def test_stop_strings_end_at_the_token_that_completes_them(engine: LocalEngine) -> None:
    decode, ids = engine.tokenizer.decode, prompt(8)  # type: ignore[union-attr]
    free = await engine.generate(ids, SamplingParams(max_tokens=60, seed=3, temperature=1.5), request_id="free")
    text = decode(free.ids)
    for start in (3, 17, 31):
        stop = text[start : start + 4]
        end = next(n for n in range(1, 61) if stop in decode(free.ids[:n]))
        params = SamplingParams(max_tokens=60, seed=3, temperature=1.5, stop=("never!", stop))
        stopped = await engine.generate(ids, params, request_id=stop)
        assert (stopped.ids, stopped.finish_reason) == (free.ids[:end], "stop")


async def test_end_tokens_stay_in_the_result(saved: Callable[..., str], engine: LocalEngine) -> None:
    free = await engine.generate(prompt(2), GREEDY, request_id="free")
    end = free.ids[5]
    ending = LocalEngine(LocalEngineConfig(model=saved(eos_token_id=[95, end]), threads=1))
    generation = await ending.generate(prompt(2), GREEDY, request_id="1")
    await ending.aclose()
    assert (generation.ids, generation.finish_reason) == (free.ids[: free.ids.index(end) + 1], "eos")


async def test_generation_is_clipped_at_the_context_limit(engine: LocalEngine) -> None:
    generation = await engine.generate(prompt(0, 190), GREEDY, request_id="1")
    assert (len(generation.ids), generation.finish_reason) == (2, "length")


async def test_deltas_add_up_to_the_result(engine: LocalEngine) -> None:
    seen: list[int] = []
    generation = await engine.generate(prompt(0), GREEDY, request_id="1", on_delta=seen.extend)
    assert tuple(seen) == generation.ids


async def test_a_delta_callback_that_raises_harms_nobody(engine: LocalEngine) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def broken(_: Sequence[int]) -> None:
        raise RuntimeError("display is gone")

    calls = [engine.generate(prompt(i), GREEDY, request_id=str(i), on_delta=[broken, None][i]) for i in range(2)]
    assert [len(g.ids) for g in await asyncio.gather(*calls)] == [16, 16]
    assert len(reported) == 16


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the prompt is empty"),
        ([3, 96], "token id 96 at position 1"),
        ([-1], "token id -1"),
        ([1] * 192, "the prompt has 192"),
    ],
)
async def test_requests_out_of_bounds_are_refused(engine: LocalEngine, ids: list[int], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        await engine.generate(ids, GREEDY, request_id="1")


async def test_stop_strings_without_a_tokenizer_are_refused(saved: Callable[..., str]) -> None:
    engine = LocalEngine(LocalEngineConfig(model=saved()))
    with pytest.raises(EngineError, match="stop strings need a tokenizer"):
        await engine.generate([1], SamplingParams(stop=("x",)), request_id="1")
    await engine.aclose()


async def test_a_request_id_is_unique_among_live_requests(engine: LocalEngine) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(engine.generate(prompt(0), GREEDY, request_id="1"))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="request id '1' is in use"):
            await engine.generate(prompt(0), GREEDY, request_id="1")
    await engine.generate(prompt(0), GREEDY, request_id="1")


async def started(engine: LocalEngine, request_id: str, **rest: Any) -> asyncio.Task[Generation]:
    """Begin an endless request and wait for its third token."""
    third = asyncio.Event()
    seen: list[int] = []

    def on_delta(ids: Sequence[int]) -> None:
        seen.extend(ids)
        if len(seen) >= 3:
            third.set()

    params = SamplingParams(temperature=0, max_tokens=150)
    call = engine.generate(prompt(0), params, request_id=request_id, on_delta=on_delta, **rest)
    task = asyncio.create_task(call)
    await third.wait()
    return task


async def test_abort_returns_the_partial(engine: LocalEngine) -> None:
    full = await engine.generate(prompt(0), SamplingParams(temperature=0, max_tokens=150), request_id="full")
    await engine.pause()
    waiting = asyncio.create_task(engine.generate(prompt(1), GREEDY, request_id="waiting"))
    await asyncio.sleep(0)
    await engine.abort("waiting")
    assert ((await waiting).ids, (await waiting).finish_reason) == ((), "abort")
    await engine.resume()
    task = await started(engine, "1")
    await engine.abort("unknown")
    await engine.abort("1")
    partial = await task
    assert partial.finish_reason == "abort"
    assert 3 <= len(partial.ids) == len(partial.logprobs) < 150
    assert partial.ids == full.ids[: len(partial.ids)]


async def test_cancellation_drops_the_request(engine: LocalEngine) -> None:
    task = await started(engine, "1")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await requests_left(engine) == 0
    await engine.generate(prompt(0), GREEDY, request_id="1")


async def requests_left(engine: LocalEngine) -> int:
    worker = engine._worker
    assert worker is not None
    return await worker.ask(lambda core: len(core._running) + len(core._waiting))


async def test_closing_returns_partials_and_ends_the_thread(saved: Callable[..., str]) -> None:
    engine = LocalEngine(LocalEngineConfig(model=saved(), threads=1))
    before = len(engine_threads())
    task = await started(engine, "1")
    assert len(engine_threads()) == before + 1
    await engine.aclose()
    await engine.aclose()
    assert (await task).finish_reason == "abort"
    assert len(engine_threads()) == before


def test_an_engine_outlives_event_loops_and_opens_again(saved: Callable[..., str]) -> None:
    engine = LocalEngine(LocalEngineConfig(model=saved(), threads=1))

    async def once() -> Generation:
        return await engine.generate(prompt(0), GREEDY, request_id="1", session="s")

    async def close() -> Generation:
        await engine.aclose()
        generation = await once()
        await engine.aclose()
        return generation

    one, two, three = asyncio.run(once()), asyncio.run(once()), asyncio.run(close())
    assert one.ids == two.ids == three.ids
    assert (one.cached_tokens, two.cached_tokens, three.cached_tokens) == (0, 11, 0)
    assert not engine_threads()


async def test_nothing_is_loaded_before_it_is_needed(saved: Callable[..., str]) -> None:
    engine = LocalEngine(LocalEngineConfig(model=saved()))
    assert (engine.info.vocab_size, engine.info.context_limit, engine.info.weight_version) == (96, 192, 0)
    assert not engine_threads()
    await engine.start()
    assert engine.info.capabilities == {"logprobs", "abort", "prefix_cache", "weights", "deltas"}
    await engine.aclose()


async def test_a_model_that_cannot_be_loaded_fails_every_request(tmp_path: Any) -> None:
    engine = LocalEngine(LocalEngineConfig(model=str(tmp_path / "absent")))
    for _ in range(2):
        calls = [engine.generate([1], GREEDY, request_id=str(i)) for i in range(2)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [ConfigError, ConfigError]
        assert "no readable config.json" in str(errors[0])
    await engine.aclose()
    assert not engine_threads()


async def test_a_crash_fails_pending_and_later_requests(engine: LocalEngine) -> None:
    task = await started(engine, "1")

    def break_model(core: Any) -> None:
        core.loaded.model.forward = None

    await engine._worker.ask(break_model)  # type: ignore[union-attr]
    with pytest.raises(EngineError, match="the engine's thread failed: TypeError"):
        await task
    with pytest.raises(EngineError, match="the engine's thread failed"):
        await engine.generate(prompt(0), GREEDY, request_id="2")


def changed_weights(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }


def updated(model: Any) -> Any:
    import copy

    other = copy.deepcopy(model)
    other.load_state_dict(changed_weights(model))
    return other


@pytest.mark.parametrize("mode", ["in_place", "retract"])
async def test_an_update_in_mid_flight_shows_in_the_spans(
    engine: LocalEngine, reference: Callable[..., Any], mode: Any
) -> None:
    task = await started(engine, "1", shared_prefix=5)
    await engine.pause(mode)
    await engine.update(changed_weights(reference()).items(), 4)
    assert engine.info.weight_version == 4
    await engine.resume()
    generation = await task
    old, new = generation.versions
    assert (old.version, old.start, new.version, new.end) == (0, 0, 4, 150)
    assert 3 <= old.end == new.start
    before, after = (recompute(m, prompt(0), generation) for m in (reference(), updated(reference())))
    assert generation.logprobs[: old.end] == pytest.approx(before[: old.end], abs=1e-4)
    if mode == "retract":
        assert generation.logprobs[old.end :] == pytest.approx(after[old.end :], abs=1e-4)


async def test_after_an_update_nothing_old_is_reused(engine: LocalEngine, reference: Callable[..., Any]) -> None:
    ids = prompt(0)
    first = await engine.generate(ids, GREEDY, request_id="1", session="s", shared_prefix=6)
    await engine.update(changed_weights(reference()).items(), 1)
    longer = [*ids, *first.ids]
    calls = [engine.generate(longer, GREEDY, request_id=s, session=s, shared_prefix=6) for s in ("s", "t")]
    for generation in await asyncio.gather(*calls):
        assert generation.cached_tokens == 6
        assert generation.versions == (VersionSpan(version=1, start=0, end=16),)
        assert generation.logprobs == pytest.approx(recompute(updated(reference()), longer, generation), abs=1e-4)


async def test_keys_of_older_weights_are_not_left_to_the_session(
    engine: LocalEngine, reference: Callable[..., Any]
) -> None:
    weights = changed_weights(reference())
    task = await started(engine, "1", session="s")
    await engine.update(weights.items(), 1)
    generation = await task
    assert {span.version for span in generation.versions} == {0, 1}
    longer = [*prompt(0), *generation.ids]
    following = await engine.generate(longer, GREEDY, request_id="2", session="s")
    assert following.cached_tokens == 0
    assert following.logprobs == pytest.approx(recompute(updated(reference()), longer, following), abs=1e-4)


async def test_an_update_whose_tensors_cannot_be_produced_fails_alone(engine: LocalEngine) -> None:
    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        yield "model.norm.weight", torch.ones(32)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await engine.update(weights(), 1)
    assert (await engine.generate(prompt(0), GREEDY, request_id="1")).versions[0].version == 0


@pytest.mark.usefixtures("attention")
async def test_a_request_that_fills_the_cache_alone_is_served(saved: Callable[..., str], reference: Any) -> None:
    config = LocalEngineConfig(model=saved(), threads=1, max_kv_tokens=4 * 96)
    engine = LocalEngine(config)
    calls = [
        engine.generate(prompt(i, 20), SamplingParams(max_tokens=90), request_id=str(i), shared_prefix=1 + i)
        for i in range(5)
    ]
    for i, generation in enumerate(await asyncio.gather(*calls)):
        assert (len(generation.ids), generation.finish_reason) == (76, "length")
        assert generation.logprobs == pytest.approx(recompute(reference(), prompt(i, 20), generation), abs=1e-4)
    await engine.aclose()


async def test_a_wrong_update_is_refused_and_the_engine_goes_on(
    engine: LocalEngine, reference: Callable[..., Any]
) -> None:
    before = await engine.generate(prompt(0), GREEDY, request_id="1")
    weights = changed_weights(reference())
    del weights["model.norm.weight"]
    with pytest.raises(WeightSyncError, match=r"no weight was given for 'model\.norm\.weight'"):
        await engine.update(weights.items(), 1)
    assert engine.info.weight_version == 0
    assert (await engine.generate(prompt(0), GREEDY, request_id="2")).ids == before.ids


async def test_pause_with_abort_returns_partials_and_holds_new_requests(engine: LocalEngine) -> None:
    task = await started(engine, "1")
    await engine.pause("abort")
    assert (await task).finish_reason == "abort"
    later = asyncio.create_task(engine.generate(prompt(0), GREEDY, request_id="2"))
    await asyncio.sleep(0)
    assert await requests_left(engine) == 1
    assert not later.done()
    await engine.resume()
    assert len((await later).ids) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float23"}, "dtype: 'float23' is not one of .* Did you mean 'float32'"),
        ({"threads": 0}, "threads: must be >= 1, not 0"),
        ({"max_running": 0}, "max_running: must be >= 1, not 0"),
        ({"max_step_tokens": 8}, r"max_step_tokens: must be >= max_running \(256\), not 8"),
        ({"max_kv_tokens": -5}, "max_kv_tokens: must be >= 1, not -5"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LocalEngineConfig(model="m", **changes)


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize(
    "limits", [{"max_running": 2}, {"max_running": 8, "max_step_tokens": 8}, {"max_kv_tokens": 832}]
)
async def test_bounds_delay_requests_but_do_not_change_them(
    saved: Callable[..., str], reference: Callable[..., Any], limits: dict[str, int]
) -> None:
    engine = LocalEngine(LocalEngineConfig(model=saved(), threads=1, **limits))
    prompts = [prompt(20, 11) + prompt(i, 2 + 7 * i) for i in range(7)]
    params = SamplingParams(max_tokens=60)
    calls = [
        engine.generate(ids, params, request_id=str(i), shared_prefix=11, session=str(i))
        for i, ids in enumerate(prompts)
    ]
    for ids, generation in zip(prompts, await asyncio.gather(*calls), strict=True):
        assert len(generation.ids) == 60
        assert generation.logprobs == pytest.approx(recompute(reference(), ids, generation), abs=1e-4)
    await engine.aclose()


async def test_bfloat16_stays_near_float32(saved: Callable[..., str], reference: Callable[..., Any]) -> None:
    engine = LocalEngine(LocalEngineConfig(model=saved(), dtype="bfloat16", threads=1))
    generation = await engine.generate(prompt(0), SamplingParams(max_tokens=40), request_id="1")
    exact = recompute(reference(), prompt(0), generation)
    errors = [abs(a - b) for a, b in zip(exact, generation.logprobs, strict=True)]
    assert sum(errors) / len(errors) < 0.3
    await engine.aclose()


async def test_a_step_wakes_the_event_loop_once(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.pause()
    calls = [asyncio.create_task(engine.generate(prompt(i), GREEDY, request_id=str(i))) for i in range(8)]
    await asyncio.sleep(0)
    loop, wakes = asyncio.get_running_loop(), list[object]()
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: wakes.append(args) or wake(*args))
    await engine.resume()
    await asyncio.gather(*calls)
    assert len(wakes) == 2  # the answer to resume, and all results at once
