"""`icrl serve-retriever INDEX`: an index behind the `/retrieve` protocol."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from aiohttp import web
from rich.console import Console

from icrl.config import load
from icrl.errors import ConfigError
from icrl.runtime.tools.retrievers.opening import open_retriever
from icrl.runtime.tools.tool import close
from icrl.serve.access import Keys
from icrl.serve.config import ServeConfig
from icrl.serve.retriever import build_retriever_app

__all__ = ["ServeRetrieverCommand", "main", "serving"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRetrieverCommand:
    """Serve a search index to other processes or machines."""

    index: Annotated[Path, tyro.conf.Positional]
    """Directory of an index of any kind."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs an API key, or `--insecure`."""
    port: int = 8001
    """Port to listen on; 0 takes a free one."""
    processes: int | None = None
    """Readers of the index; by default a small index is searched in this process."""
    timeout_s: float = 30.0
    """Seconds for one request."""
    max_running: int = 64
    """Requests that are answered at once; further ones are told to come back."""
    api_key_file: Path | None = None
    """File with one accepted key a line; the variable ICRL_API_KEY gives one, too."""
    insecure: bool = False
    """Serve other machines without a key."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s: must be > 0 seconds, not {self.timeout_s!r}")
        if self.max_running < 1:
            raise ConfigError(f"max_running: must be >= 1, not {self.max_running!r}")
        self.access()

    def access(self) -> ServeConfig:
        """Return the same rules of access as those of `icrl serve`.

        Raises:
            ConfigError: Other machines are served without a key.
        """
        return ServeConfig(host=self.host, port=self.port, api_key_file=self.api_key_file, insecure=self.insecure)


def main(argv: Sequence[str]) -> None:
    """Serve until a signal ends it."""
    command = load(ServeRetrieverCommand, argv, prog="icrl serve-retriever", description="Serve a search index.")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    asyncio.run(_run_until_signalled(command, console.print))


@asynccontextmanager
async def serving(command: ServeRetrieverCommand) -> AsyncIterator[str]:
    """Serve while the block runs.

    Yields:
        The server's address.

    Raises:
        ConfigError: The port is taken, or the host is none of this machine's.
        DataError: There is no such index, or it is damaged.
    """
    keys = Keys(await asyncio.to_thread(command.access().api_keys))
    retriever = await asyncio.to_thread(open_retriever, command.index, processes=command.processes)
    app = build_retriever_app(retriever, keys, timeout_s=command.timeout_s, max_running=command.max_running)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=5.0)
    try:
        await runner.setup()
        await _listen(web.TCPSite(runner, command.host.strip("[]"), command.port), command)
        host, port = runner.addresses[0][:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        await runner.cleanup()
        await close(retriever)


async def _listen(site: web.TCPSite, command: ServeRetrieverCommand) -> None:
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(f"port: cannot listen on {command.host}:{command.port} ({error.strerror})") from error


async def _run_until_signalled(command: ServeRetrieverCommand, tell: Callable[[str], None]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with serving(command) as address:
        tell(f"ready: {address}/retrieve; use it with --index {address}")
        await ended.wait()
