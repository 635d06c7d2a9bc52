"""Real SGLang servers, in their own environment: `icrl sglang --cpu --install`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from processes import stat_of

from icrl.errors import ConfigError
from icrl.runtime.engines.sglang.environment import Environment, find_environment
from icrl.runtime.engines.sglang.flags import LaunchConfig
from icrl.runtime.engines.sglang.launch import LaunchedServer, running
from icrl.tiny import BASE_DIR

START_S = 600.0


class Served:
    """A real server that runs; its life is looked after on a loop of its own, so that any test's loop can use it.

    The address stays the same if it is started again.
    """

    def __init__(self, **options: Any) -> None:
        self.options = {"model": str(BASE_DIR), "cpu": True, "startup_s": START_S, **options}
        self.address = ""
        self.start()

    def start(self) -> None:
        """Start it, or start it again where it was."""
        started: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(started)), daemon=True)
        self._thread.start()
        self.address = started.result()
        self.options["port"] = int(self.address.rpartition(":")[2])

    async def _live(self, started: Future[str]) -> None:
        self._loop, self._enough = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with running(LaunchConfig(**self.options)) as self.server:
                started.set_result(self.server.address)
                await self._enough.wait()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    server: LaunchedServer

    def kill(self) -> None:
        """Kill its main process, as a machine that dies would."""
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            if (stat := stat_of(pid)) is not None and int(stat[1]) == self.server.pid:
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End it and everything that it started; nothing happens if it has ended."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._enough.set)
            self._thread.join()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests the time that a server takes to start."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(START_S + 120))


@pytest.fixture(scope="session")
def sglang_environment() -> Environment:
    """The environment of the server; without one, tests are skipped, or fail where ICRL_REQUIRE_SGLANG=1."""
    try:
        return find_environment()
    except ConfigError as error:
        if os.environ.get("ICRL_REQUIRE_SGLANG") == "1":
            pytest.fail(f"ICRL_REQUIRE_SGLANG=1, and {error}", pytrace=False)
        pytest.skip(f"NOT TESTED AGAINST A REAL SERVER: {error}")


@pytest.fixture(scope="session")
def sglang_factory(sglang_environment: Environment) -> Iterator[Callable[..., Served]]:
    """Start servers of a test's own (2 GB and most of a minute each); they end with the session, or by `stop`."""
    servers: list[Served] = []

    def start(**options: Any) -> Served:
        servers.append(Served(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def sglang_address(sglang_factory: Callable[..., Served]) -> str:
    """The address of a server with the embedded model, for tests that leave it as they found it."""
    return sglang_factory().address


@pytest.fixture(scope="session")
def changing_server(sglang_factory: Callable[..., Served]) -> Served:
    """A second server, for tests that change its weights, pause it or kill it; they bring it back afterwards."""
    return sglang_factory()
