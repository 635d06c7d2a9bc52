"""The in-process engine: decode steps by batch size, what shared prefixes save, and a step of rollouts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from icrl.config import load
from icrl.runtime.engines.local import LocalEngine, LocalEngineConfig
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.trajectory import Generation
from icrl.types import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBench:
    """Throughput of the in-process engine on the embedded model."""

    model: Path = BASE_DIR
    """Model directory."""
    dtype: str = "float32"
    """`float32` or `bfloat16`."""
    tokens: int = 64
    """Tokens that each request samples."""
    prefix: int = 256
    """Tokens that all requests share."""


def main(argv: Sequence[str]) -> None:
    options = load(EngineBench, argv, prog="benchmarks/run.py engine", description=str(EngineBench.__doc__))
    Console().print(asyncio.run(measure(options)))


async def measure(options: EngineBench) -> Table:
    tokenizer = ChatTokenizer.load(options.model)
    engine = LocalEngine(LocalEngineConfig(model=str(options.model), dtype=options.dtype), tokenizer=tokenizer)
    await engine.start()
    table = Table(title=f"{options.dtype}, {options.tokens} tokens a request, {options.prefix} shared prompt tokens")
    for column in ("requests", "prefix shared", "seconds", "ms a decode step", "tokens/s", "prompt tokens cached"):
        table.add_column(column, justify="right")
    await batch(engine, options, 8, shared=True)  # warm-up
    for requests in (1, 16, 128):
        for shared in (False, True):
            started = time.perf_counter()
            found = await batch(engine, options, requests, shared=shared)
            spent = time.perf_counter() - started
            sampled = sum(len(generation.ids) for generation in found)
            cached = sum(g.cached_tokens for g in found) / sum(g.prompt_tokens for g in found)
            table.add_row(
                str(requests),
                "yes" if shared else "no",
                f"{spent:.2f}",
                f"{spent / options.tokens * 1000:.1f}",
                f"{sampled / spent:,.0f}",
                f"{cached:.0%}",
            )
    await engine.aclose()
    return table


RUN = iter(range(10**9))


async def batch(engine: LocalEngine, options: EngineBench, requests: int, *, shared: bool) -> list[Generation]:
    """Sample from prompts that begin with the same tokens, telling the engine so or not."""
    # Id 3 and upwards are ordinary tokens; a fresh prefix each time, so that nothing is left over from before.
    run = next(RUN)
    prefix = [3 + (run * 7919 + i * 31) % 1000 for i in range(options.prefix)]
    params = SamplingParams(max_tokens=options.tokens, temperature=1.0)
    calls = [
        engine.generate(
            [*prefix, *(3 + (i * 17 + j) % 900 for j in range(12))],
            params,
            request_id=f"{run}/{i}",
            shared_prefix=len(prefix) if shared else 0,
        )
        for i in range(requests)
    ]
    return await asyncio.gather(*calls)
