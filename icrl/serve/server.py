"""A server's life: bind, load, answer, reload, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from icrl.collector import relax_collector
from icrl.errors import ConfigError, IcrlError
from icrl.runtime.agent import Agent
from icrl.runtime.engines.address import is_address, name_of
from icrl.serve.app import build_app
from icrl.serve.backlog import LineWriter
from icrl.serve.config import ServeConfig
from icrl.serve.connection import Door
from icrl.serve.metrics import METRICS
from icrl.serve.problem import Problem
from icrl.serve.service import Service
from icrl.serve.telemetry import Telemetry
from icrl.serve.training_log import TrainingLog

__all__ = ["Server", "run_until_signalled", "running"]

KEEPALIVE_S = 75.0
CLOSE_TIMEOUT_S = 1.0
"""How long handlers get, once the service is idle, to send what they hold."""
BACKLOG = 1024
PORTS_TRIED = 20
UNPRIVILEGED = 1024
_ENDING = (signal.SIGTERM, signal.SIGINT)
_LOG = logging.getLogger("icrl.serve")


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
async def running(
    config: ServeConfig, open_agent: Callable[[], Agent], lines: LineWriter | None = None
) -> AsyncIterator[Server]:
    """Serve while the block runs; leaving it drains and closes.

    Args:
        config: What was set.
        open_agent: Makes the agent, now and at every reload.
        lines: Where to write the access log, if there is to be one.

    Raises:
        ConfigError: The port is taken, or the host is none of this machine's.
    """
    sock = _bind(config)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(sock.close)
        service = Service(open_agent, config.admission)
        stack.push_async_callback(service.aclose)
        app = await _build(config, service, lines, stack)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CLOSE_TIMEOUT_S)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        door = Door(runner, config.admission, keepalive_s=KEEPALIVE_S)
        listening = await asyncio.get_running_loop().create_server(door, sock=sock, backlog=BACKLOG)
        stack.callback(listening.close)
        loading = asyncio.create_task(service.start())
        stack.push_async_callback(_cancel, loading)
        yield Server(service, _address(sock), loading)
        await service.drain(config.grace_s)


async def _build(
    config: ServeConfig, service: Service, lines: LineWriter | None, stack: contextlib.AsyncExitStack
) -> web.Application:
    """Put the application together with everything that watches it."""
    name = config.name or _name(config.model)
    log = None
    if config.log_trajectories is not None:
        log = await asyncio.to_thread(TrainingLog, config.log_trajectories, redact=config.log_redact)
        stack.push_async_callback(asyncio.to_thread, log.close)
        service.watchers.append(log.watch)
    telemetry = Telemetry(name) if config.telemetry else None
    if telemetry is not None:
        service.watchers.append(telemetry.watch)
    access = lines if config.access_log else None
    # Files with keys are read.
    app = await asyncio.to_thread(build_app, service, config, model_name=name, lines=access, telemetry=telemetry)
    lost = [part for part in (lines, log) if part is not None]
    what = "Lines of logs that were lost because nobody read them, or the disk was too slow."
    app[METRICS].show("icrl_log_dropped", what, lambda: sum(part.dropped for part in lost))
    return app


async def run_until_signalled(config: ServeConfig, open_agent: Callable[[], Agent], lines: LineWriter) -> None:
    """Serve until SIGTERM or SIGINT; a second one waits for nothing; SIGHUP loads the model anew.

    Args:
        config: What was set.
        open_agent: Makes the agent, now and at every reload.
        lines: Where to tell the operator what happens, and to write the access log.

    Raises:
        ConfigError: The server cannot listen, or the model cannot be opened.
    """
    relax_collector()
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(config, open_agent, lines))
        signals = _Signals(server.service, lines.write)
        with signals.handled():
            lines.write(f"listening on {server.address}, loading {config.model or 'the embedded model'} …")
            await _first(server.loading, signals.ended)
            if not signals.ended.is_set():
                _welcome(server, lines.write)
            await signals.ended.wait()
            lines.write(f"draining: {server.service.running} requests get {config.grace_s:g} s to finish")
            await stack.aclose()
            await signals.aclose()


class _Signals:
    """What the process' signals do to a service."""

    def __init__(self, service: Service, tell: Callable[[str], None]) -> None:
        self._service = service
        self._tell = tell
        self._reloading: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        """Set by the first signal to end."""

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Listen while the block runs."""
        for number in _ENDING:
            self._loop.add_signal_handler(number, self._end)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number in (*_ENDING, signal.SIGHUP):
                self._loop.remove_signal_handler(number)

    async def aclose(self) -> None:
        """Give up what is being reloaded."""
        await _cancel(*self._reloading)

    def _end(self) -> None:
        if self.ended.is_set():
            self._tell("ending at once")
            self._service.cut()
            for number in _ENDING:  # a third one kills
                self._loop.remove_signal_handler(number)
        self.ended.set()

    def _reload(self) -> None:
        task = self._loop.create_task(_reload(self._service, self._tell))
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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
    except Exception:
        _LOG.exception("the old model stays; opening the new one failed")
    else:
        tell("the new model answers from now on")


def _welcome(server: Server, tell: Callable[[str], None]) -> None:
    tell(f"ready: {server.address} (a page for people), {server.address}/v1 (for OpenAI clients)")
    tell(
        f"try: curl {server.address}/v1/responses -H 'Content-Type: application/json' "
        '-d \'{"input": "What is the river of Lirux?"}\''
    )


def _name(model: str | None) -> str:
    """Name a model for clients by the last part of its path, or by its address."""
    if model is not None and is_address(model):
        return name_of(model)
    return "icrl-embedded" if model is None else Path(model).name or model


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _bind(config: ServeConfig) -> socket.socket:
    """Take the port before anything is loaded.

    Raises:
        ConfigError: It is taken, or not ours; the message names a free one.
    """
    host = config.host.strip("[]")
    sock = socket.socket(_family(host), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, config.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            problem = f"port: cannot listen on {host}:{config.port} ({error.strerror}).{_free(host, config.port)}"
        else:
            problem = f"host: cannot listen on {host} ({error.strerror})"
        raise ConfigError(problem) from error
    return sock


def _free(host: str, taken: int) -> str:
    """Name a port that could be had."""
    first = max(taken + 1, UNPRIVILEGED)
    for port in range(first, min(first + PORTS_TRIED, 65536)):
        with contextlib.suppress(OSError), socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.bind((host, port))
            return f" Port {port} is free: --port {port}"
    return ""


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
