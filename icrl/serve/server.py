"""A server's life: bind, load, answer, reload, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from icrl.errors import ConfigError, IcrlError
from icrl.runtime.agent import Agent
from icrl.serve.app import build_app
from icrl.serve.config import ServeConfig
from icrl.serve.problem import Problem
from icrl.serve.service import Service
from icrl.serve.telemetry import Telemetry
from icrl.serve.training_log import TrainingLog

__all__ = ["Server", "run_until_signalled", "running"]

KEEPALIVE_S = 75.0
PORTS_TRIED = 20


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """A bound server."""

    service: Service
    """The agent behind it; ready once the model answered."""
    address: str
    """Where it listens, such as `http://127.0.0.1:8000`."""
    loading: asyncio.Task[None]
    """Opens the model while the server answers `/health` already."""


@asynccontextmanager
async def running(config: ServeConfig, open_agent: Callable[[], Agent] | None = None) -> AsyncIterator[Server]:
    """Serve while the block runs; leaving it drains and closes.

    Args:
        config: What was set.
        open_agent: Makes the agent; by default the one that `config` names.

    Raises:
        ConfigError: The port is taken, or the host is none of this machine's.
    """
    name = config.name or _name(config.model)
    service = Service(open_agent or (lambda: _agent(config)), config.admission)
    if config.telemetry:
        service.watchers.append(Telemetry(name).watch)
    log = None
    if config.log_trajectories is not None:
        log = TrainingLog(config.log_trajectories, redact=config.log_redact)
        service.watchers.append(log.watch)
    app = build_app(service, config, model_name=name)
    sock = _bind(config)
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, keepalive_timeout=KEEPALIVE_S, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        host, port = sock.getsockname()[:2]
        loading = asyncio.create_task(service.start())
        try:
            yield Server(service, f"http://{f'[{host}]' if ':' in host else host}:{port}", loading)
            await service.drain(config.grace_s)
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
    finally:
        await runner.cleanup()
        await service.aclose()
        if log is not None:
            await asyncio.to_thread(log.close)


async def run_until_signalled(config: ServeConfig, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP loads the model anew.

    Args:
        config: What was set.
        tell: Prints a line for the operator.

    Raises:
        ConfigError: The server cannot listen, or the model cannot be opened.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with running(config) as server:
        reloading: set[asyncio.Task[None]] = set()

        def reload() -> None:
            task = loop.create_task(_reload(server.service, tell))
            reloading.add(task)
            task.add_done_callback(reloading.discard)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, reload)
        try:
            tell(f"loading {config.model or 'the embedded model'} …")
            await _first(server.loading, ended)
            if not ended.is_set():
                _welcome(server, tell)
            await ended.wait()
            tell(f"draining: {server.service.running} requests get {config.grace_s:g} s to finish")
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)


async def _first(loading: asyncio.Task[None], ended: asyncio.Event) -> None:
    """Wait until the model is loaded, or until the server is to end; a model that cannot be opened raises here."""
    waiting = asyncio.ensure_future(ended.wait())
    await asyncio.wait((loading, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if loading.done():
        loading.result()


async def _reload(service: Service, tell: Callable[[str], None]) -> None:
    tell("loading the model anew …")
    try:
        await service.reload()
    except (IcrlError, Problem) as error:
        tell(f"the old model stays: {error}")
    else:
        tell("the new model answers from now on")


def _welcome(server: Server, tell: Callable[[str], None]) -> None:
    tell(f"ready: {server.address} (a page for people), {server.address}/v1 (for OpenAI clients)")
    tell(
        f"try: curl {server.address}/v1/responses -H 'Content-Type: application/json' "
        '-d \'{"input": "What is the code of Rikor?"}\''
    )


def _agent(config: ServeConfig) -> Agent:
    """Make the agent that the configuration names; reads the model's settings, opens nothing."""
    return Agent(config.model, tools=config.tools, index=config.index, limits=config.limits)


def _name(model: str | None) -> str:
    """Name a model for clients by the last part of its path."""
    return "icrl-embedded" if model is None else Path(model).name or model


def _bind(config: ServeConfig) -> socket.socket:
    """Take the port before anything is loaded.

    Raises:
        ConfigError: It is taken, or not ours; the message names a free one.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((config.host.strip("[]"), config.port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"port: cannot listen on {config.host}:{config.port} ({error.strerror}).{_free(config)}"
        ) from error
    return sock


def _free(config: ServeConfig) -> str:
    for port in range(config.port + 1, min(config.port + PORTS_TRIED, 65536)):
        with contextlib.suppress(ConfigError, OSError), socket.socket() as probe:
            probe.bind((config.host, port))
            return f" Port {port} is free: --port {port}"
    return ""
