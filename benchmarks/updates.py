"""What requests that are under way at a weight update sample, by pause mode, and what a mode costs."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from icrl.config import load
from icrl.runtime.engines.protocol import PauseMode
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.runtime.engines.sglang.launch import running_server
from icrl.tiny import BASE_DIR
from icrl.train.sync import push
from icrl.trajectory import Generation
from icrl.types import SamplingParams

MODES: tuple[PauseMode, ...] = ("in_place", "retract")
PREFIX = [5, 9, *range(100, 160)]
AT_ONCE = 4
"""Requests that the first server runs at once; what comes on top waits in its queue."""
NOISE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """Update a server's weights while it samples; compare what it says with a forward pass; time the modes."""

    repeats: int = 6
    """Updates per situation and mode."""
    seconds: float = 24.0
    """Length of a measurement of the cost."""
    every_s: float = 4.0
    """Seconds from an update to the next meanwhile."""
    requests: int = 64
    """Requests under way at once meanwhile."""
    rounds: int = 3
    """Measurements of the cost, in turns; the median counts."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(slots=True, kw_only=True)
class Difference:
    """Of one situation and mode: nats a token between the server and a forward pass of the weights of that version."""

    situation: str
    mode: PauseMode
    older: list[float] = field(default_factory=list)
    """Of tokens whose span names the older version."""
    newer: list[float] = field(default_factory=list)
    """Of tokens whose span names the newer one."""


Ask = Callable[[SGLangEngine, int], Awaitable[tuple[list[int], asyncio.Task[Generation]]]]


def main(argv: Sequence[str]) -> None:
    options = load(Updates, argv, prog="benchmarks/run.py updates", description=str(Updates.__doc__))
    torch.set_num_threads(1)
    differences, costs = asyncio.run(measure(options))
    show(differences, costs)
    if options.json is not None:
        figures = {"differences": [asdict(d) for d in differences], "tokens_per_s": costs}
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


async def measure(options: Updates) -> tuple[list[Difference], dict[str, list[float]]]:
    """Ask a server that runs few requests at once, then one that runs many."""
    cpu = not torch.cuda.is_available()
    weights = shaken(3), shaken(4)
    async with running_server(BASE_DIR, cpu=cpu, max_running=AT_ONCE) as address:
        differences = [
            await differ(address, weights, situation, mode, options.repeats) for situation in ASKED for mode in MODES
        ]
    costs: dict[str, list[float]] = {"no updates": [], **{mode: [] for mode in MODES}}
    async with running_server(BASE_DIR, cpu=cpu) as address:
        for _ in range(options.rounds):
            costs["no updates"].append(await tokens_per_s(address, weights, None, options))
            for mode in MODES:
                costs[mode].append(await tokens_per_s(address, weights, mode, options))
    return differences, costs


def shaken(seed: int) -> Any:
    """Return the embedded model with noise, and with an end token that it rarely samples."""
    model = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * NOISE)
        model.model.embed_tokens.weight[:, 0] = 5.0
        model.model.embed_tokens.weight[model.config.eos_token_id, 0] = -5.0
        model.model.norm.weight[0] = 1.0
    return model


async def differ(address: str, weights: tuple[Any, Any], situation: str, mode: PauseMode, repeats: int) -> Difference:
    """Update the server while it has requests of one situation, again and again."""
    found = Difference(situation=situation, mode=mode)
    engine = SGLangEngine(address)
    await engine.start()
    version = engine.info.weight_version
    for number in range(repeats):
        await push(engine, weights[0], version + 1)
        await push_while(engine, weights, version + 1, mode, ASKED[situation], number, found)
        version = engine.info.weight_version
    await engine.aclose()
    return found


async def push_while(
    engine: SGLangEngine,
    weights: tuple[Any, Any],
    older: int,
    mode: PauseMode,
    asked: Ask,
    number: int,
    found: Difference,
) -> None:
    """Ask, update, and compare what comes back."""
    await sample(engine, PREFIX, 2)  # leaves the prefix in the cache
    if asked is _after:
        await push(engine, weights[1], older + 1, mode=mode)
        prompt, reply = await asked(engine, number)
    else:
        prompt, reply = await asked(engine, number)
        await push(engine, weights[1], older + 1, mode=mode)
    generation = await reply
    for span in generation.versions:
        model = weights[span.version - older]
        into = found.older if span.version == older else found.newer
        into += gaps(model, prompt, generation)[span.start : span.end]


def gaps(model: Any, prompt: Sequence[int], generation: Generation) -> list[float]:
    """Return how far each log-probability is from that of a forward pass."""
    ids = torch.tensor([[*prompt, *generation.ids]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(generation.ids)[:, None])[:, 0]
    return (expected - torch.tensor(generation.logprobs)).abs().tolist()


async def sample(engine: SGLangEngine, prompt: Sequence[int], tokens: int, **options: Any) -> Generation:
    name = f"r{time.monotonic_ns()}"
    return await engine.generate([*prompt], SamplingParams(max_tokens=tokens), request_id=name, **options)


async def started(engine: SGLangEngine, prompt: list[int], tokens: int) -> tuple[list[int], asyncio.Task[Generation]]:
    """Ask, and wait for the first token."""
    first = asyncio.Event()
    task = asyncio.create_task(sample(engine, prompt, tokens, on_delta=lambda ids: first.set()))
    await first.wait()
    return prompt, task


async def _crossing(engine: SGLangEngine, number: int) -> tuple[list[int], asyncio.Task[Generation]]:
    return await started(engine, [7, 8, 9, 11 + number], 200)


async def _computing(engine: SGLangEngine, number: int) -> tuple[list[int], asyncio.Task[Generation]]:
    """Ask with a prompt that takes a while to compute, and wait for a part of that while."""
    prompt = [*PREFIX[:2], *[*range(100, 200)] * 18, 300 + number]
    task = asyncio.create_task(sample(engine, prompt, 16))
    await asyncio.sleep(0.03 + 0.01 * number)
    return prompt, task


async def _waiting(engine: SGLangEngine, number: int) -> tuple[list[int], asyncio.Task[Generation]]:
    """Ask after three times as many long requests as are run at once."""
    prompt = [*PREFIX, 170 + number]
    busy = [asyncio.create_task(sample(engine, [7, 8, 9, i], 400)) for i in range(3 * AT_ONCE)]
    await asyncio.sleep(0.1)
    reply = asyncio.create_task(sample(engine, prompt, 24))
    await asyncio.sleep(0.1)

    async def all_of_them() -> Generation:
        await asyncio.gather(*busy)
        return await reply

    return prompt, asyncio.create_task(all_of_them())


async def _after(engine: SGLangEngine, number: int) -> tuple[list[int], asyncio.Task[Generation]]:
    prompt = [*PREFIX, 170 + number]
    return prompt, asyncio.create_task(sample(engine, prompt, 24))


ASKED: Mapping[str, Ask] = {
    "running for a while": _crossing,
    "prompt just computed": _computing,
    "waiting in the queue, prefix in the cache": _waiting,
    "sent after the update": _after,
}


async def tokens_per_s(address: str, weights: tuple[Any, Any], mode: PauseMode | None, options: Updates) -> float:
    """Sample without a break, with an update every few seconds if there is a mode."""
    engine = SGLangEngine(address)
    await engine.start()
    await push(engine, weights[0], engine.info.weight_version + 1)
    sampled = 0

    async def ask_again(number: int) -> None:
        nonlocal sampled
        shared = [*PREFIX[:2], *[*range(100, 200)] * 5, 200 + number // 8]
        turn = 0
        while True:
            turn += 1
            prompt = [*shared, 300 + number, 400 + turn % 100]
            generation = await sample(engine, prompt, 32 + (number * 7 + turn) % 64)
            sampled += len(generation.ids)  # not in one line, which would read the sum before it waits

    asking = [asyncio.create_task(ask_again(number)) for number in range(options.requests)]
    began, updates = time.monotonic(), 0
    while time.monotonic() - began < options.seconds:
        await asyncio.sleep(options.every_s)
        if mode is not None:
            updates += 1
            await push(engine, weights[updates % 2], engine.info.weight_version + 1, mode=mode)
    rate = sampled / (time.monotonic() - began)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await engine.aclose()
    return rate


def show(differences: Sequence[Difference], costs: Mapping[str, Sequence[float]]) -> None:
    table = Table(title="nats a token from a forward pass of the weights that the span names")
    for column in ("at the update", "mode", "older: tokens, mean, max", "newer: tokens, mean, max"):
        table.add_column(column)
    for row in differences:
        table.add_row(row.situation, row.mode, _told(row.older), _told(row.newer))
    console = Console(width=140)
    console.print(table)
    for name, rates in costs.items():
        console.print(f"{name}: {statistics.median(rates):.0f} tokens/s ({', '.join(f'{rate:.0f}' for rate in rates)})")


def _told(gaps: Sequence[float]) -> str:
    return f"{len(gaps)}, {statistics.fmean(gaps):.1e}, {max(gaps):.1e}" if gaps else "–"
