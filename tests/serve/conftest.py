"""A running server for tests of every route: a real socket, the scripted engine unless a test brings another agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import pytest
from aiohttp.test_utils import TestClient, TestServer
from watched import until

from icrl.runtime.agent import Agent
from icrl.runtime.engines.protocol import Engine
from icrl.serve.app import build_app
from icrl.serve.backlog import LineWriter
from icrl.serve.config import ServeConfig
from icrl.serve.keys import SERVICE
from icrl.serve.service import Service
from icrl.serve.telemetry import Telemetry
from icrl.testing import EchoTool, ScriptedEngine

MODEL = "scripted"
"""What clients call the model of these tests."""


class Serve(Protocol):
    """Starts a server; it ends with the test."""

    def __call__(
        self,
        model: Sequence[str | Sequence[int]] | Engine | Callable[[], Agent],
        *,
        agent: dict[str, Any] | None = None,
        lines: LineWriter | None = None,
        telemetry: Telemetry | None = None,
        **config: Any,
    ) -> Awaitable[TestClient[Any, Any]]:
        """Serve replies, an engine, or what a factory makes.

        Args:
            model: The turns of every session, an engine, or a function that makes an agent.
            agent: Arguments of `Agent` besides the engine; by default it has an `EchoTool`.
            lines: Where to write the access log.
            telemetry: Makes spans.
            config: Fields of `ServeConfig`.
        """
        ...


def opener(
    model: Sequence[str | Sequence[int]] | Engine | Callable[[], Agent], arguments: dict[str, Any] | None
) -> Callable[[], Agent]:
    if callable(model):
        return model
    engine = ScriptedEngine(model) if isinstance(model, Sequence) else model
    chosen = {"tools": [EchoTool()]} if arguments is None else arguments
    return lambda: Agent(engine, **chosen)


@pytest.fixture
async def serve(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serve]:
    """Starts servers; afterwards nothing of any request may be left."""
    monkeypatch.delenv("ICRL_API_KEY", raising=False)
    started: list[tuple[TestClient[Any, Any], Service]] = []

    async def start(model, *, agent=None, lines=None, telemetry=None, **config):
        settings = ServeConfig(**({"access_log": False} | config))
        service = Service(opener(model, agent), settings.admission)
        # Key files are read here, before a server serves; a test's loop runs already.
        name = settings.name or MODEL
        app = await asyncio.to_thread(build_app, service, settings, model_name=name, lines=lines, telemetry=telemetry)
        if telemetry is not None:
            service.watchers.append(telemetry.watch)
        await service.start()
        server = TestServer(app)
        await server.start_server(shutdown_timeout=1.0)
        client = TestClient(server)
        started.append((client, service))
        return client

    yield start
    for client, service in started:
        await client.close()
        await until(lambda: not service.running and not service.live)  # noqa: B023 - called here only
        await service.aclose()


@pytest.fixture
def service_of() -> Callable[[TestClient[Any, Any]], Service]:
    """The service behind a client of `serve`."""
    return lambda client: client.server.app[SERVICE]  # type: ignore[attr-defined]
