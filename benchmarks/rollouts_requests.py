"""CPU per request of the SGLang engine, whole or streamed, against a scripted server in a process of its own."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
import sys
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rollouts_stub import serving
from workload import large_tokenizer

from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.testing import ByteTokenizer, SGLangStub
from icrl.types import SamplingParams

VOCABULARY = 149_000
CONTEXT = 40_000
NEVER = CONTEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Client CPU per request of the whole engine."""

    requests: int = 512
    """Requests a measurement; each is the second turn of its session."""
    repeats: int = 5
    """Measurements of each kind; the median counts."""
    added: int = 300
    """Ids that the second turn adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Requests of one kind."""

    name: str
    """What they are."""
    in_flight: int = 64
    """Requests under way at once."""
    history: int = 900
    """Ids of the session's first turn."""
    tokens: int = 160
    """Tokens that are sampled."""
    event: int | None = None
    """Tokens an event of the reply; whole replies without it."""
    watched: bool = False
    """Whether somebody watches the tokens come."""

    @property
    def config(self) -> SGLangConfig:
        """How the engine has to be set to send such requests."""
        if self.event is None:
            return SGLangConfig(stream_from=NEVER)
        return SGLangConfig(stream_from=1, chunk_tokens=self.event, delta_tokens=self.event)


KINDS = (
    Kind(name="whole"),
    Kind(name="whole, 7,000 ids of history", history=7000),
    Kind(name="whole, 16 in flight", in_flight=16),
    Kind(name="whole, 512 in flight", in_flight=512),
    Kind(name="one event of 256 tokens", event=256),
    Kind(name="events of 64 tokens", event=64),
    Kind(name="events of 4 tokens, watched", event=4, watched=True),
    Kind(name="whole, 2,048 tokens out", tokens=2048),
    Kind(name="2,048 tokens out, events of 256", tokens=2048, event=256),
)


def measure(options: Requests) -> list[dict[str, Any]]:
    """Return a row for every kind of requests."""
    rows = []
    for tokens, kinds in itertools.groupby(KINDS, lambda kind: kind.tokens):
        with serving(Path(__file__), str(tokens)) as address:
            rows += [asyncio.run(_measure(options, kind, address)) for kind in kinds]
    return rows


async def _measure(options: Requests, kind: Kind, address: str) -> dict[str, Any]:
    engine = SGLangEngine(address, tokenizer=large_tokenizer(), config=kind.config)
    await engine.start()
    try:
        await _spent_us(options, kind, engine)  # connections, compiled things
        samples = [await _spent_us(options, kind, engine) for _ in range(options.repeats)]
    finally:
        await engine.aclose()
    return {"kind": kind.name, "median_us": statistics.median(samples), "samples_us": samples}


async def _spent_us(options: Requests, kind: Kind, engine: SGLangEngine) -> float:
    """Ask every session's first turn unmeasured, then return CPU µs per request of the second."""
    draw, name = random.Random(0), f"{time.monotonic_ns()}"
    prompts = [array("i", draw.choices(range(1000, VOCABULARY), k=kind.history)) for _ in range(options.requests)]
    # The budget is what comes: an eighth of it is no more than an event, and would make events larger if it were.
    params = SamplingParams(max_tokens=kind.tokens)

    async def turn(number: int) -> None:
        waiting = iter(enumerate(prompts))

        async def ask() -> None:
            for i, ids in waiting:
                await engine.generate(
                    ids,
                    params,
                    request_id=f"{name}.{i}/{number}",
                    session=f"{name}.{i}",
                    on_delta=(lambda ids: None) if kind.watched else None,
                )

        await asyncio.gather(*(ask() for _ in range(kind.in_flight)))

    await turn(0)
    for ids in prompts:
        ids.extend(draw.choices(range(1000, VOCABULARY), k=options.added))
    gc.collect()
    started = time.process_time()
    await turn(1)
    return (time.process_time() - started) / len(prompts) * 1e6


async def _serve(tokens: int) -> None:
    reply = [7] * tokens
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "context_limit": CONTEXT, "record": False}
    async with SGLangStub(lambda ids: reply, tokenizer=ByteTokenizer(), **shape) as stub:
        print(stub.address, flush=True)
        await asyncio.Event().wait()


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the rows."""
    shown = Table(title="client CPU per request of the engine, server scripted")
    shown.add_column("requests")
    for column in ("median µs", "all µs"):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(row["kind"], f"{row['median_us']:.0f}", " ".join(f"{us:.0f}" for us in row["samples_us"]))
    return shown


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(int(sys.argv[1])))
