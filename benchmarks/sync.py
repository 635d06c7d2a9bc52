"""How long an SGLang server is paused for new weights, by transport."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from icrl.config import load
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.runtime.engines.sglang.launch import running_server
from icrl.tiny import BASE_DIR
from icrl.train.sync import push

WARM_UP = 3
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """Push a model's weights into an SGLang server again and again, and time it."""

    address: str | None = None
    """A server of that model on this machine, which keeps the last weights sent; one is started if not given."""
    model: Path = BASE_DIR
    """Directory of the model; the embedded one by default."""
    transports: tuple[str, ...] = ("disk", "tensor", "distributed")
    """Ways to send them."""
    lora_rank: int = 8
    """Rank of an adapter that is sent by itself, to a server of its own; 0 sends none."""
    updates: int = 20
    """Updates of each kind, after a few that do not count."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of one transport."""

    transport: str
    verified: bool
    """Whether checksums were compared."""
    median_ms: float
    """From the pause to the reply that sampling goes on."""
    slowest_ms: float


def main(argv: Sequence[str]) -> None:
    options = load(Sync, argv, prog="benchmarks/run.py sync", description=str(Sync.__doc__))
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    rows = asyncio.run(measure_all(options, model))
    size = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
    show(rows, f"{size:.1f} MB in float32, {options.updates} updates each")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


async def measure_all(options: Sync, model: Any) -> list[Row]:
    async with AsyncExitStack() as stack:
        address = options.address
        if address is None:
            started = running_server(options.model, cpu=not torch.cuda.is_available())
            address = await stack.enter_async_context(started)
        kinds = [(transport, verified) for transport in options.transports for verified in (False, True)]
        rows = [await measure(address, model, options.updates, *kind) for kind in kinds]
    if options.lora_rank and options.address is None:
        rows.append(await measure_adapter(options, model))
    return rows


async def measure(address: str, model: Any, updates: int, transport: Any, verified: bool) -> Row:
    engine = SGLangEngine(address, transport=transport, verify=verified)
    await engine.start()
    taken = await push_again_and_again(engine, model, updates)
    await engine.aclose()
    return Row(transport=transport, verified=verified, median_ms=statistics.median(taken), slowest_ms=max(taken))


async def measure_adapter(options: Sync, model: Any) -> Row:
    """Push only an adapter."""
    from peft import LoraConfig, get_peft_model

    rank, cpu = options.lora_rank, not torch.cuda.is_available()
    config = LoraConfig(r=rank, target_modules=list(TARGETS), init_lora_weights=False)
    async with running_server(options.model, cpu=cpu, lora_rank=rank, lora_targets=TARGETS) as address:
        engine = SGLangEngine(address, adapters="lora")
        await engine.start()
        taken = await push_again_and_again(engine, get_peft_model(model, config), options.updates, adapters="lora")
        await engine.aclose()
    name = f"adapter of rank {rank}"
    return Row(transport=name, verified=False, median_ms=statistics.median(taken), slowest_ms=max(taken))


async def push_again_and_again(engine: SGLangEngine, model: Any, updates: int, **options: Any) -> list[float]:
    """Return how long each update took, in ms."""
    version = engine.info.weight_version
    taken = []
    for number in range(WARM_UP + updates):
        started = time.perf_counter()
        await push(engine, model, version + 1 + number, **options)
        taken.append((time.perf_counter() - started) * 1e3)
    return taken[WARM_UP:]


def show(rows: Sequence[Row], title: str) -> None:
    table = Table(title=title)
    for column in ("transport", "verified", "median ms", "slowest ms"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.transport, "yes" if row.verified else "no", f"{row.median_ms:.0f}", f"{row.slowest_ms:.0f}")
    Console().print(table)
