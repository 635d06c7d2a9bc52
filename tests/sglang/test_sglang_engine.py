"""The engine against a real SGLang server, and its numbers against a full forward pass."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from icrl.errors import EngineError
from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.trajectory import Generation, VersionSpan
from icrl.types import Message, SamplingParams

pytestmark = pytest.mark.sglang

LONG = SamplingParams(temperature=2.0, max_tokens=1500)
"""Hot enough that the small model hardly ever ends by itself."""

NOISE = 1e-3
"""Two ways to add the same float32 numbers differ by up to 2e-4 in this model's log-probabilities."""


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.load(BASE_DIR)


@pytest.fixture(scope="module")
def prompt(tokenizer: ChatTokenizer) -> list[int]:
    return tokenizer.encode("Task: What is the code of Rikor?\nAnswer:")


@pytest.fixture(scope="module")
def forward() -> Callable[[Sequence[int], float], Any]:
    """Log-probabilities of the next token at every position, [T, V], by one forward pass in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)

    def run(ids: Sequence[int], temperature: float) -> Any:
        with torch.inference_mode():
            logits = model(torch.tensor([list(ids)])).logits[0].float()
        return (logits / temperature).log_softmax(-1)

    return run


@pytest.fixture(params=["whole", "streamed"])
async def engine(sglang_address: str, request: pytest.FixtureRequest) -> AsyncIterator[SGLangEngine]:
    streamed = {"stream_from": 1, "chunk_tokens": 8}
    config = SGLangConfig(**streamed) if request.param == "streamed" else SGLangConfig(stream_from=10**9)
    engine = SGLangEngine(sglang_address, config=config)
    await engine.start()
    yield engine
    await engine.aclose()


def covered(reply: Generation) -> bool:
    """Whether versions cover the tokens without gaps."""
    ends = [0, *(span.end for span in reply.versions)]
    return [span.start for span in reply.versions] == ends[:-1] and ends[-1] == len(reply.ids)


def test_facts(sglang_address: str) -> None:
    async def read() -> SGLangEngine:
        engine = SGLangEngine(sglang_address)
        await engine.start()
        await engine.aclose()
        return engine

    facts = asyncio.run(read()).facts
    assert (facts.vocab_size, facts.version >= (0, 5, 19)) == (2078, True)
    assert 0 < facts.context_limit <= 2048


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
async def test_logprobs_are_those_of_a_forward_pass(
    engine: SGLangEngine, forward: Any, prompt: list[int], temperature: float, top_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=64)
    replies = await asyncio.gather(*(engine.generate(prompt, params, request_id=f"r/{i}") for i in range(8)))
    for reply in replies:
        table = forward([*prompt, *reply.ids], temperature)[len(prompt) - 1 : -1]
        expected = [float(row[token]) for row, token in zip(table, reply.ids, strict=True)]
        assert reply.logprobs == pytest.approx(expected, abs=NOISE)
        assert covered(reply)


async def test_greedy_takes_the_likeliest_and_reports_it_unscaled(
    engine: SGLangEngine, forward: Any, prompt: list[int]
) -> None:
    reply = await engine.generate(prompt, SamplingParams(temperature=0.0, max_tokens=24), request_id="r")
    table = forward([*prompt, *reply.ids], 1.0)[len(prompt) - 1 : -1]
    assert list(reply.ids) == table.argmax(-1).tolist()
    assert reply.logprobs == pytest.approx(table.max(-1).values.tolist(), abs=NOISE)


async def test_a_stop_string_inside_a_token_keeps_the_token(
    engine: SGLangEngine, tokenizer: ChatTokenizer, prompt: list[int]
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24)
    free = await engine.generate(prompt, params, request_id="r")
    texts = [tokenizer.decode([token]) for token in free.ids]
    at = next(i for i, text in enumerate(texts) if len(text) > 3 and "".join(texts).count(text[:-1]) == 1)
    stop = texts[at][:-1]
    stopped = await engine.generate(
        prompt, SamplingParams(temperature=0.0, max_tokens=24, stop=(stop,)), request_id="r"
    )
    assert stopped.finish_reason == "stop"
    assert stopped.ids == free.ids[: at + 1]
    assert stopped.logprobs == pytest.approx(free.logprobs[: at + 1], abs=NOISE)


async def test_the_end_token_is_kept(engine: SGLangEngine, tokenizer: ChatTokenizer) -> None:
    (text,) = tokenizer.render([Message(role="user", content="What is the code of Rikor?")])
    prompt = tokenizer.encode(text)
    params = SamplingParams(temperature=0.7, max_tokens=400)
    replies = await asyncio.gather(*(engine.generate(prompt, params, request_id=f"r/{i}") for i in range(8)))
    ended = [reply for reply in replies if reply.finish_reason == "eos"]
    assert ended
    for reply in ended:
        assert reply.ids[-1] in tokenizer.eos_ids
        assert not set(reply.ids[:-1]) & tokenizer.eos_ids


async def test_the_second_turn_is_mostly_cached(engine: SGLangEngine) -> None:
    prompt = random.choices(range(100, 2000), k=24)  # of no other test, whose replies might be found, too
    first = await engine.generate(prompt, SamplingParams(max_tokens=16), request_id="t/0", session="t")
    turn = [*prompt, *first.ids, *prompt[:5]]
    second = await engine.generate(turn, SamplingParams(max_tokens=4), request_id="t/1", session="t")
    assert second.prompt_tokens == len(turn)
    assert second.cached_tokens == len(prompt) + len(first.ids) - 1  # the last sampled token has no keys and values


async def test_an_abort_returns_a_partial_reply_with_everything(
    engine: SGLangEngine, forward: Any, prompt: list[int]
) -> None:
    pending = [asyncio.create_task(engine.generate(prompt, LONG, request_id=f"r/{i}")) for i in range(4)]
    await asyncio.sleep(0.5)
    for i in range(4):
        await engine.abort(f"r/{i}")
    replies = [await task for task in pending]
    aborted = [reply for reply in replies if reply.finish_reason == "abort"]
    assert aborted
    for reply in aborted:
        assert 0 < len(reply.ids) < LONG.max_tokens
        table = forward([*prompt, *reply.ids], LONG.temperature)[len(prompt) - 1 : -1]
        expected = [float(row[token]) for row, token in zip(table, reply.ids, strict=True)]
        assert reply.logprobs == pytest.approx(expected, abs=NOISE)
        assert covered(reply)


async def test_an_abort_overtakes_the_request_and_a_cancelled_one_leaves_the_server(
    engine: SGLangEngine, prompt: list[int]
) -> None:
    pending = asyncio.create_task(engine.generate(prompt, LONG, request_id="r"))
    await asyncio.sleep(0)
    await engine.abort("r")
    assert len((await pending).ids) < 200
    async with asyncio.timeout(60):
        while True:  # until one has not ended by itself
            pending = asyncio.create_task(engine.generate(prompt, LONG, request_id="r"))
            while not (pending.done() or (await engine.probe()).running):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            if pending.cancel():
                break
    with pytest.raises(asyncio.CancelledError):
        await pending
    again = await engine.generate(prompt, SamplingParams(max_tokens=4), request_id="r")
    assert 0 < len(again.ids) <= 4


async def test_deltas_add_up(engine: SGLangEngine, prompt: list[int]) -> None:
    seen: list[int] = []
    reply = await engine.generate(prompt, SamplingParams(max_tokens=40), request_id="r", on_delta=seen.extend)
    assert tuple(seen) == reply.ids


async def test_versions_name_the_weights_of_every_token(engine: SGLangEngine, prompt: list[int]) -> None:
    reply = await engine.generate(prompt, SamplingParams(max_tokens=8), request_id="r")
    version = engine.info.weight_version
    assert reply.versions == (VersionSpan(version=version, start=0, end=len(reply.ids)),)


async def test_bounds_are_kept_here(engine: SGLangEngine, prompt: list[int]) -> None:
    for ids in ([engine.info.vocab_size], [*prompt, -1], [], [5] * engine.info.context_limit):
        with pytest.raises(EngineError):
            await engine.generate(ids, SamplingParams(), request_id="r", session="s")
    full = [5] * (engine.info.context_limit - 1)
    reply = await engine.generate(full, SamplingParams(max_tokens=99), request_id="r")
    assert len(reply.ids) == 1
    load = await engine.probe()
    assert 0 <= load.kv_usage <= 1
