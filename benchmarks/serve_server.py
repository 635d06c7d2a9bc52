"""The server of `serve.py`: a process with a scripted engine, which is told what to do on its standard input."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from icrl.collector import relax_collector
from icrl.runtime.agent import Agent
from icrl.runtime.engines.protocol import EngineInfo
from icrl.serve.config import AdmissionConfig, ServeConfig
from icrl.serve.server import Server, running
from icrl.testing import ByteTokenizer
from icrl.trajectory import Generation
from icrl.types import SamplingParams

WORDS = [f"word{i}" for i in range(100)]
SHORT = 8
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") / 1024
MANY = 1_000_000
IDLE_S = 0.005


class BeatingEngine:
    """Gives every request a word at each beat: none while `beat_s` is below 0, a short reply at once where it is 0."""

    def __init__(self) -> None:
        self.tokenizer = ByteTokenizer()
        self.info = EngineInfo(name="beating", vocab_size=self.tokenizer.vocab_size, context_limit=MANY)
        self.beat_s = 0.0
        self.long, self.short = self._reply(WORDS), self._reply(WORDS[:SHORT])
        self._live: dict[str, tuple[Callable[[Sequence[int]], None], list[tuple[int, ...]], asyncio.Future[None]]] = {}
        self._ticking: asyncio.Task[None] | None = None
        self.cancelled_at: list[float] = []

    async def generate(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        on_delta: Callable[[Sequence[int]], None] | None = None,
        **_: object,
    ) -> Generation:
        pieces, generation = self.long if self.beat_s else self.short
        if on_delta is not None:
            ended = asyncio.get_running_loop().create_future()
            self._live[request_id] = on_delta, pieces[::-1], ended
            if self._ticking is None:
                self._ticking = asyncio.create_task(self._tick())
            try:
                await ended
            except asyncio.CancelledError:
                self.cancelled_at.append(time.monotonic())
                raise
            finally:
                self._live.pop(request_id, None)
        return generation

    def _reply(self, words: Sequence[str]) -> tuple[list[tuple[int, ...]], Generation]:
        """Prepare an answer: its pieces, and all of it."""
        texts = ["<answer> ", *(word + " " for word in words), "</answer>"]
        pieces = [tuple(self.tokenizer.encode(text)) for text in texts]
        ids = tuple(token for piece in pieces for token in piece)
        return pieces, Generation(ids=ids, logprobs=(-0.5,) * len(ids), finish_reason="stop")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.beat_s if self.beat_s > 0 else IDLE_S if self.beat_s < 0 or not self._live else 0)
            for on_delta, left, ended in tuple(self._live.values()) if self.beat_s >= 0 else ():
                if left:
                    on_delta(left.pop())
                elif not ended.done():
                    ended.set_result(None)

    async def abort(self, request_id: str) -> None: ...

    async def aclose(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()


async def serve() -> None:
    relax_collector()
    engine = BeatingEngine()
    admission = AdmissionConfig(max_running=MANY, max_waiting=MANY, max_per_key=MANY)
    config = ServeConfig(port=0, admission=admission, access_log=False, grace_s=1.0)
    async with running(config, lambda: Agent(engine, tools=())) as server:
        await server.loading
        while line := await asyncio.to_thread(sys.stdin.readline):
            command, argument = line.split()
            print(json.dumps(await obey(server, engine, command, float(argument))), flush=True)


async def obey(server: Server, engine: BeatingEngine, command: str, argument: float) -> dict[str, object]:
    """Carry out a command."""
    if command == "address":
        address = urlsplit(server.address)
        return {"address": (address.hostname, address.port)}
    if command == "beat":
        engine.beat_s = argument
    if command == "direct":
        return {"cpu_s": await direct(engine, int(argument))}
    if command == "cancelled":
        return {"at": engine.cancelled_at}
    if command == "memory":
        gc.collect()
        return {"kib": resident_kib(), "tasks": len(asyncio.all_tasks())}
    return {"cpu_s": time.process_time()}


def resident_kib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


async def direct(engine: BeatingEngine, requests: int) -> float:
    """Call the engine without a server and return the CPU seconds."""
    engine.beat_s = 1e-9
    heard: list[Sequence[int]] = []
    started = time.process_time()
    await asyncio.gather(
        *(engine.generate((), SamplingParams(), request_id=str(i), on_delta=heard.append) for i in range(requests))
    )
    return time.process_time() - started


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve())
