"""What a program does with SGLang in its own process; run by SGLang's own Python, prints one line of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys

from safetensors.torch import load_file

from icrl.errors import EngineError, WeightSyncError
from icrl.runtime.engines.protocol import Engine
from icrl.runtime.engines.sglang.embedded import EmbeddedEngine
from icrl.types import SamplingParams

PROMPT = [5, 6, 7, 8]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6)
LARGER = 1.05
"""Of all weights, so that others are sampled."""
ENDLESS = [1207, 28]
"""`Question:`, behind which the embedded model asks itself questions for ever."""
LONG = SamplingParams(temperature=0.0, max_tokens=600)


def plain(generation):
    return {
        "ids": generation.ids,
        "logprobs": generation.logprobs,
        "finish": generation.finish_reason,
        "versions": [(span.version, span.start, span.end) for span in generation.versions],
        "cached": generation.cached_tokens,
    }


async def begun(engine, request_id):
    """Begin a long request, and return once it has sampled something."""
    sampled = asyncio.Event()
    running = asyncio.create_task(
        engine.generate(ENDLESS, LONG, request_id=request_id, on_delta=lambda new: sampled.set())
    )
    await sampled.wait()
    return running


async def crossing(engine, mode, weights, version):
    """Return what a request sampled that weights were replaced under."""
    running = await begun(engine, mode)
    await engine.pause(mode)
    await engine.update(iter(weights.items()), version)
    await engine.resume()
    return await running


async def misfit(engine, weights, version):
    try:
        await engine.update(weights.items(), version)
    except WeightSyncError as error:
        return str(error)


async def refusal(engine, ids):
    try:
        await engine.generate(ids, GREEDY, request_id="refused")
    except EngineError as error:
        return str(error)


async def main(engine, model):
    found = {"protocol": isinstance(engine, Engine), "limits": (engine.info.vocab_size, engine.info.context_limit)}
    found["whole"] = plain(await engine.generate(PROMPT, GREEDY, request_id="a"))
    deltas = []
    streamed = await engine.generate(PROMPT, GREEDY, request_id="b", on_delta=deltas.extend)
    found["streamed"], found["deltas"] = plain(streamed), deltas
    found["endless"] = ENDLESS
    found["refusals"] = [await refusal(engine, []), await refusal(engine, [engine.info.vocab_size])]
    async with asyncio.TaskGroup() as group:
        many = [group.create_task(engine.generate(PROMPT, GREEDY, request_id=f"m{i}")) for i in range(8)]
    found["together"] = [plain(task.result())["ids"] for task in many]

    running = await begun(engine, "long")
    await engine.abort("long")
    found["aborted"] = plain(await running)

    running = asyncio.create_task(engine.generate(ENDLESS, LONG, request_id="cancelled"))
    await asyncio.sleep(0.2)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running

    weights = {name: tensor.float() for name, tensor in load_file(os.path.join(model, "model.safetensors")).items()}
    larger = {name: tensor * LARGER for name, tensor in weights.items()}
    found["spanning"] = plain(await crossing(engine, "retract", larger, 3))
    found["changed"] = plain(await engine.generate(PROMPT, GREEDY, request_id="c"))
    await engine.pause("abort")
    await engine.update(weights.items(), 4)
    await engine.resume()
    found["back"] = plain(await engine.generate(PROMPT, GREEDY, request_id="d"))
    found["misfit"] = await misfit(engine, {**larger, "model.norm.weight": weights["model.norm.weight"][1:]}, 5)
    found["in_place"] = plain(await crossing(engine, "in_place", larger, 5))
    found["after"] = plain(await engine.generate(PROMPT, GREEDY, request_id="e"))
    found["version"] = engine.info.weight_version
    await engine.aclose()
    found["closed"] = await refusal(engine, PROMPT)
    return found


if __name__ == "__main__":
    model = sys.argv[1]
    settings = {"device": "cpu", "attention_backend": "torch_native", "dtype": "float32", "max_total_tokens": 16384}
    engine = EmbeddedEngine(model, **settings)
    sys.stdout.write("\n" + json.dumps(asyncio.run(main(engine, model))) + "\n")
    sys.stdout.flush()
