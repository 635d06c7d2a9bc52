"""A server on a socket of its own, with the bounds on connections that `icrl serve` has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from icrl.runtime.agent import Agent
from icrl.runtime.engines.protocol import Engine
from icrl.serve.backlog import LineWriter
from icrl.serve.config import ServeConfig
from icrl.serve.server import Server, running
from icrl.testing import EchoTool, ScriptedEngine


class Listening(NamedTuple):
    """A running server."""

    server: Server
    """The server."""
    port: int
    """Where it listens."""
    writers: list[asyncio.StreamWriter]
    """Connections to it."""

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection; it is closed at the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def exchange(self, raw: bytes, *, timeout_s: float = 10.0) -> bytes:
        """Send bytes and return everything that comes back until the server closes."""
        reader, writer = await self.connect()
        writer.write(raw)
        async with asyncio.timeout(timeout_s):
            return await reader.read()


def agreeable() -> ScriptedEngine:
    """Make an engine that answers every question in the same way."""
    return ScriptedEngine(lambda ids: "<answer> ok </answer>")


@asynccontextmanager
async def listening(
    engine: Engine | None = None, *, lines: LineWriter | None = None, **config: Any
) -> AsyncIterator[Listening]:
    """Serve an engine while the block runs."""
    settings = ServeConfig(**({"port": 0, "access_log": False, "grace_s": 0.2} | config))
    chosen = engine or agreeable()
    async with running(settings, lambda: Agent(chosen, tools=[EchoTool()]), lines) as server:
        await server.loading
        here = Listening(server, int(server.address.rsplit(":", 1)[1]), [])
        try:
            yield here
        finally:
            for writer in here.writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in here.writers), return_exceptions=True)
