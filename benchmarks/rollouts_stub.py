"""The engine of the rollout benchmarks: a scripted server in a process of its own, and how to reach it."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from rollouts_work import Scene, Script

from icrl.runtime.engines.pool import EnginePool
from icrl.runtime.engines.pool_config import PoolConfig
from icrl.runtime.engines.protocol import Engine
from icrl.runtime.engines.sglang.engine import SGLangEngine
from icrl.testing import Capacity, Faults, SGLangStub

SECONDS_TO_STOP = 10.0


class StubProcess:
    """A scripted server, which obeys commands on its standard input: `kill`, `restart`.

    Args:
        trajectories: How many it knows.
        settings: Those of `Scene`; `scale` gives the server the scene's speed instead of none; `faults`, shares by
            kind.
    """

    def __init__(self, *, trajectories: int, **settings: Any) -> None:
        self._settings = {"trajectories": trajectories, **settings}

    def __enter__(self) -> Self:
        command = [sys.executable, str(Path(__file__)), json.dumps(self._settings)]
        with ExitStack() as stack:
            self._process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(self._end)
            self.address: str = self.ask("address")["address"]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def ask(self, command: str) -> dict[str, Any]:
        """Give a command and wait for its outcome."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the stub has no pipes")
        print(command, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the stub ended with status {self._process.wait()}")
        return dict(json.loads(line))


@contextmanager
def serving(file: Path, *arguments: str) -> Iterator[str]:
    """Run a file of this directory as a server, and hand out the address that it prints."""
    with subprocess.Popen([sys.executable, str(file), *arguments], stdout=subprocess.PIPE, text=True) as server:
        try:
            if server.stdout is None:
                raise RuntimeError("the server has no pipe")
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(SECONDS_TO_STOP)
            server.kill()


@asynccontextmanager
async def connected(address: str, scene: Scene) -> AsyncIterator[EnginePool]:
    """Connect to the stub as users do: through a pool, which here has one member."""
    server = SGLangEngine(address, tokenizer=scene.work.tokenizer)
    pool = EnginePool([server], tokenizer=scene.work.tokenizer, config=PoolConfig(probe_every_s=0.5))
    await pool.start()
    try:
        yield pool
    finally:
        await pool.aclose()


@asynccontextmanager
async def connected_directly(address: str, scene: Scene) -> AsyncIterator[Engine]:
    """Connect to the stub without a pool: what is lost stays lost."""
    engine = SGLangEngine(address, tokenizer=scene.work.tokenizer)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


async def _serve(settings: dict[str, Any]) -> None:
    scale = settings.pop("scale", None)
    faults = Faults(**settings.pop("faults", {}))
    scene = Scene(scale=scale or 1.0, **settings)
    total, each = scene.capacity.total, scene.capacity.each
    capacity = Capacity(tokens_per_s=total, tokens_per_s_per_request=each) if scale else None
    script, tokenizer = Script(scene), scene.work.tokenizer
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # its connections break on purpose
    shape: dict[str, Any] = {
        "tokenizer": tokenizer,
        "capacity": capacity,
        "faults": faults,
        "record": faults != Faults(),
    }
    async with SGLangStub(script, **shape) as stub:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await _obey(stub, line.strip())), flush=True)


async def _obey(stub: SGLangStub, command: str) -> dict[str, Any]:
    if command == "kill":
        stub.kill()
    if command == "restart":
        await stub.restart()
    failed = sum(asked.fault is not None for asked in stub.requests)
    return {"address": stub.address, "live": len(stub.live), "failed": failed + stub.deaths}


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(json.loads(sys.argv[1])))
