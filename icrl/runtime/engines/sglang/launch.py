"""A server's life: start it, wait until it samples, end it and everything that it started.

running_server(model, cpu=True)   async with … as address: a server while the block runs
running(LaunchConfig(...))        the same, with a handle on its process
command(config, port)             the command line, for whoever starts servers in other ways
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from icrl.errors import ConfigError, EngineError, MissingExtraError
from icrl.runtime.engines.sglang.environment import find_environment
from icrl.runtime.engines.sglang.flags import LaunchConfig, command, secrets
from icrl.runtime.engines.sglang.readiness import Readiness

__all__ = ["LaunchConfig", "LaunchedServer", "running", "running_server"]

_GUARD = Path(__file__).with_name("guard.py")
_LOG_LINES = 40
_LOG_BYTES = 65_536
_REAP_S = 30.0


class LaunchedServer:
    """A server that was started here. Made by `running`."""

    def __init__(self, process: asyncio.subprocess.Process, config: LaunchConfig, address: str, log: Path) -> None:
        self._process = process
        self._config = config
        self.address = address
        self.log = log

    @property
    def pid(self) -> int:
        """The process below which everything of the server is."""
        return self._process.pid

    async def ended(self) -> int:
        """Wait until the server ends by itself, and return its exit code."""
        return await self._process.wait()

    async def stop(self, *, grace_s: float | None = None) -> None:
        """End the server and everything that it started: ask, wait, kill.

        Args:
            grace_s: Seconds between asking and killing; the configured ones if not given.
        """
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout((self._config.grace_s if grace_s is None else grace_s) + _REAP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def tail(self) -> str:
        """Return the end of what the server said; the key is not in it."""
        text = await asyncio.to_thread(_end_of, self.log)
        if self._config.api_key:
            text = text.replace(self._config.api_key, "…")
        return "\n".join(text.splitlines()[-_LOG_LINES:])


@asynccontextmanager
async def running_server(model: str | Path, **options: Any) -> AsyncIterator[str]:
    """Serve a model while the block runs, and yield the server's address.

    Args:
        model: Its directory, or its name at a hub.
        options: Fields of `LaunchConfig`.

    Raises:
        EngineError: The server ended or did not get ready in time; the end of its log is in the message.
        ConfigError: An option is wrong, the port is taken, or the environment for CPUs is missing.
        MissingExtraError: SGLang is not installed.
    """
    async with running(LaunchConfig(model=str(model), **options)) as server:
        yield server.address


@asynccontextmanager
async def running(config: LaunchConfig) -> AsyncIterator[LaunchedServer]:
    """Serve a model while the block runs.

    Args:
        config: What to start.

    Raises:
        EngineError: The server ended or did not get ready in time; the end of its log is in the message.
        ConfigError: The environment for CPUs is missing, the port is taken, or the log cannot be written.
        MissingExtraError: SGLang is not installed.
    """
    async with AsyncExitStack() as stack:
        python, variables = await asyncio.to_thread(_interpreter, config)
        directory = await asyncio.to_thread(tempfile.TemporaryDirectory, prefix="icrl-sglang-")
        stack.push_async_callback(asyncio.to_thread, directory.cleanup)
        log = config.log or Path(directory.name, "server.log")
        port = _port(config)
        keys = await secrets(config, Path(directory.name))
        arguments = command(config, port, python=python, keys=keys)
        server = await _spawn(arguments, variables, config, f"http://{_reachable(config.host)}:{port}", log)
        stack.push_async_callback(server.stop)
        await _ready(server, config)
        if keys is not None:
            await asyncio.to_thread(keys.unlink)  # it has been read
        yield server


def _interpreter(config: LaunchConfig) -> tuple[str, dict[str, str]]:
    """Return the Python that has SGLang, and what its environment variables must be."""
    if config.cpu:
        environment = find_environment()
        return str(environment.python), environment.variables(os.environ)
    try:
        version("sglang")  # a directory of that name in the path is none
    except PackageNotFoundError:
        raise MissingExtraError("sglang", extra="sglang") from None
    return sys.executable, dict(os.environ)


async def _spawn(
    arguments: list[str], variables: dict[str, str], config: LaunchConfig, address: str, log: Path
) -> LaunchedServer:
    """Start a guard with the server below it; both end when we do."""
    with await asyncio.to_thread(_private, log) as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(_GUARD), str(config.grace_s), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=variables,
            start_new_session=True,
        )
    return LaunchedServer(process, config, address, log)


def _private(path: Path) -> Any:
    """Open a log for its owner alone: servers write their settings into it, and so their keys."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb")
    except OSError as error:
        raise ConfigError(f"log: {path} cannot be written ({error.strerror})") from error


async def _ready(server: LaunchedServer, config: LaunchConfig) -> None:
    """Wait until the server samples a token."""
    readiness = Readiness(server.address, api_key=config.api_key)
    waiting = asyncio.create_task(readiness.wait())
    ended = asyncio.create_task(server.ended())
    try:
        await asyncio.wait({waiting, ended}, timeout=config.startup_s, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done() and not ended.done():
            return waiting.result()
        tail = await server.tail()
        reason = f"ended with code {ended.result()}" if ended.done() else f"was not ready after {config.startup_s:g} s"
        last = "" if ended.done() or not readiness.last else f" ({readiness.last})"
        raise EngineError(f"the server {reason}{last}; the end of its log:\n{tail}", engine=server.address)
    finally:
        waiting.cancel()
        ended.cancel()
        await asyncio.gather(waiting, ended, return_exceptions=True)


def _end_of(path: Path) -> str:
    """Read the end of a log, which may have grown for weeks."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        return file.read().decode("utf-8", "replace")


def _port(config: LaunchConfig) -> int:
    """Return the port to listen on, which nobody does now: whoever does would be taken for our server.

    Raises:
        ConfigError: It is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        with socket.create_server((config.host, config.port), family=family) as listening:
            return int(listening.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"port, host: {config.port} on {config.host} cannot be listened on ({error.strerror}); "
            "choose another port, or 0 for a free one"
        ) from error


def _reachable(host: str) -> str:
    """Return a host's name as a client of this machine writes it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
