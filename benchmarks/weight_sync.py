"""How long a server is paused for new weights, per transport.

    python benchmarks/weight_sync.py http://127.0.0.1:30000 [--model DIRECTORY] [--updates 20]

The server must serve the model (default: the embedded one) and run on this machine; it keeps the last weights sent.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.tiny import BASE_DIR
from icrl.train.sync import push

WARM_UP = 3


async def measure(address: str, model: Any, updates: int, **options: Any) -> list[float]:
    """Return the milliseconds of whole pushes, from the pause to the reply that sampling goes on."""
    engine = SGLangEngine(address, **options)
    await engine.start()
    version = engine.info.weight_version
    taken = []
    for number in range(WARM_UP + updates):
        started = time.perf_counter()
        await push(engine, model, version + 1 + number)
        if number >= WARM_UP:
            taken.append((time.perf_counter() - started) * 1e3)
    await engine.aclose()
    return taken


async def run(address: str, directory: str, updates: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    size = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
    print(f"{size:.1f} MB in float32, {updates} updates each, ms")
    print("| transport | verified | median | slowest |\n|---|---|---|---|")
    for transport in ("disk", "tensor", "distributed"):
        for verify in (False, True):
            taken = await measure(address, model, updates, transport=transport, verify=verify)
            word = "yes" if verify else "no"
            print(f"| {transport} | {word} | {statistics.median(taken):.0f} | {max(taken):.0f} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--model", default=str(BASE_DIR))
    parser.add_argument("--updates", type=int, default=20)
    given = parser.parse_args()
    asyncio.run(run(given.address, given.model, given.updates))


if __name__ == "__main__":
    main()
