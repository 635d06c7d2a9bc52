"""`icrl sglang [MODEL]`: start an SGLang server for training, and end it with Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from icrl.config import load
from icrl.errors import ConfigError, EngineError, MissingExtraError
from icrl.runtime.engines.sglang.environment import INSTALL
from icrl.runtime.engines.sglang.flags import LORA_TARGETS, LaunchConfig
from icrl.runtime.engines.sglang.install import install
from icrl.runtime.engines.sglang.launch import LaunchedServer, running
from icrl.runtime.model import find_model

__all__ = ["SGLangCommand", "main"]

_KEY = "ICRL_ENGINE_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class SGLangCommand:
    """Start an SGLang server for training. What stands behind `--` goes to the server as it is."""

    model: Annotated[str | None, tyro.conf.Positional] = None
    """Hugging Face name, directory, or run directory; the embedded base model if not given."""
    port: int = 30_000
    """Where it listens; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Which address it binds; others than loopback need a key in ICRL_ENGINE_KEY."""
    tp: int = 1
    """GPUs that share the model (tensor parallelism)."""
    cpu: bool = False
    """Run on a CPU, in an environment of its own."""
    install: bool = False
    """With `--cpu`: make that environment, and end."""
    dtype: str = "auto"
    """Number format of the weights: `auto` is the model's own on GPUs, and float32 on a CPU."""
    max_total_tokens: int | None = None
    """Tokens of the cache for keys and values; if not given, the server's choice on GPUs, and 65,536 on a CPU."""
    max_running: int | None = None
    """Requests sampled at once; if not given, the server's choice on GPUs, and 128 on a CPU."""
    deterministic: bool = True
    """Sample the same whatever else is in the batch, at some cost in speed; on GPUs only."""
    lora_rank: int = 0
    """Largest rank of LoRA adapters that it takes, for `icrl train --sync.adapters lora`; 0 takes none."""
    lora_targets: tuple[str, ...] = LORA_TARGETS
    """Modules that these may change."""
    startup_s: float = 600.0
    """Seconds that it may take until it samples a token."""
    log: Path | None = None
    """File that the server's output is appended to; if not given, one that goes with the server."""

    def __post_init__(self) -> None:
        if self.install and not self.cpu:
            raise ConfigError(
                "install: makes the environment for CPUs, with --cpu; for GPUs: pip install 'icrl[sglang]'"
            )
        self.launched("model")

    def launched(self, model: str, extra: Sequence[str] = ()) -> LaunchConfig:
        """Return what is to be started.

        Args:
            model: Directory of the model.
            extra: More arguments for the server.

        Raises:
            ConfigError: A setting is wrong.
        """
        names = ("port", "host", "tp", "cpu", "dtype", "max_total_tokens", "max_running", "deterministic")
        shared = {name: getattr(self, name) for name in (*names, "lora_rank", "lora_targets", "startup_s", "log")}
        return LaunchConfig(model=model, extra=tuple(extra), api_key=os.environ.get(_KEY) or None, **shared)


def main(argv: Sequence[str]) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    own, extra = _split(argv)
    settings = load(SGLangCommand, own, prog="icrl sglang", description="Start an SGLang server for training.")
    console = Console(soft_wrap=True, highlight=False)
    if settings.install:
        install(say=console.print)
        console.print("start a server: icrl sglang --cpu")
        return
    try:
        asyncio.run(_serve(settings.launched(str(find_model(settings.model)), extra), console))
    except MissingExtraError:
        Console(stderr=True, soft_wrap=True).print(f"without a GPU: {INSTALL}, then: icrl sglang --cpu")
        raise


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments at `--`."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


async def _serve(config: LaunchConfig, console: Console) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, told.set)
            stack.callback(loop.remove_signal_handler, number)
        serving = asyncio.create_task(_until_it_ends(config, console))
        asked = asyncio.create_task(told.wait())
        await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not serving.done():
            console.print("ending")
            serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _until_it_ends(config: LaunchConfig, console: Console) -> None:
    console.print(f"starting SGLang with {config.model} on a {'CPU' if config.cpu else 'GPU'}; this takes a minute")
    async with running(config) as server:
        _tell(server, console)
        code = await server.ended()
        tail = await server.tail()
        raise EngineError(f"the server ended with code {code}; the end of its log:\n{tail}", engine=server.address)


def _tell(server: LaunchedServer, console: Console) -> None:
    console.print(f"ready: {server.address} (log: {server.log})")
    console.print(f"  icrl train --engine {server.address}")
    console.print(f"  icrl serve {server.address}")
    console.print("Ctrl-C ends it.")
