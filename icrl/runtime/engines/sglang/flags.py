"""From settings to the command line of a server."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from icrl.errors import ConfigError

__all__ = ["CPU_POOL_TOKENS", "CPU_RUNNING", "LORA_TARGETS", "LaunchConfig", "command", "secrets"]

CPU_POOL_TOKENS = 65_536
"""Tokens of the cache on a CPU, where the server would take half of the memory that it finds."""
CPU_RUNNING = 128
"""Requests sampled at once on a CPU."""

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Modules that adapters change, if not said otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchConfig:
    """A server to start."""

    model: str
    """Directory of the model, or its name at a hub."""
    port: int = 0
    """Where it listens; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Which address it binds; other machines reach it only where this is not loopback, and then it wants a key."""
    tp: int = 1
    """GPUs that share the model (tensor parallelism)."""
    cpu: bool = False
    """Run on a CPU, in the environment that `icrl sglang --cpu --install` makes."""
    dtype: str = "auto"
    """Number format of the weights: `auto` is the model's own on GPUs, and float32 on a CPU."""
    max_total_tokens: int | None = None
    """Tokens of the cache for keys and values; if not given, the server's choice on GPUs, and 65,536 on a CPU."""
    max_running: int | None = None
    """Requests sampled at once; if not given, the server's choice on GPUs, and 128 on a CPU."""
    deterministic: bool = True
    """Sample the same whatever else is in the batch, at some cost in speed; on GPUs only, a CPU's attention cannot."""
    lora_rank: int = 0
    """Largest rank of LoRA adapters that it takes; 0 takes none."""
    lora_targets: tuple[str, ...] = LORA_TARGETS
    """Modules that these may change."""
    api_key: str | None = None
    """What clients must send; none if not given."""
    extra: tuple[str, ...] = ()
    """More arguments for the server, as they are."""
    startup_s: float = 600.0
    """Seconds that it may take until it samples a token."""
    grace_s: float = 10.0
    """Seconds that it has to end when it is asked to, before it is killed."""
    log: Path | None = None
    """File that its output is appended to; if not given, one that goes with the server."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port: must be from 0 to 65535, not {self.port}")
        counts = (("tp", 1), ("max_total_tokens", 1), ("max_running", 1), ("lora_rank", 0))
        for name, least in (*counts, ("startup_s", 0), ("grace_s", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}: must be >= {least}, not {value:g}")
        if self.cpu and self.tp > 1:
            raise ConfigError(f"tp: a CPU runs a model in one process, not {self.tp}")
        if self.api_key is not None and "--config" in self.extra:
            raise ConfigError("extra: the key is given to the server in a --config file of ours, and it reads only one")
        if self.api_key is None and self.host not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(f"host: {self.host} serves other machines; set a key (ICRL_ENGINE_KEY)")


async def secrets(config: LaunchConfig, directory: Path) -> Path | None:
    """Write the key into a file that only the server's user reads; command lines are read by everybody.

    Args:
        config: The settings.
        directory: Where to.
    """
    if config.api_key is None:
        return None
    path = directory / "keys.yaml"

    def write(text: str) -> None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(text)

    await asyncio.to_thread(write, json.dumps({"api-key": config.api_key}))
    return path


def command(config: LaunchConfig, port: int, *, python: str, keys: Path | None = None) -> list[str]:
    """Return the command line of a server.

    Args:
        config: The settings.
        port: Where it listens.
        python: The interpreter that has SGLang.
        keys: File with the server's key.

    Example:
        >>> " ".join(command(LaunchConfig(model="m", deterministic=False), 30000, python="python")[:6])
        'python -m sglang.launch_server --model-path m --host'
    """
    flags: dict[str, object] = {
        "--model-path": config.model,
        "--host": config.host,
        "--port": port,
        "--dtype": "float32" if config.cpu and config.dtype == "auto" else config.dtype,
        "--max-total-tokens": config.max_total_tokens or (CPU_POOL_TOKENS if config.cpu else None),
        "--max-running-requests": config.max_running or (CPU_RUNNING if config.cpu else None),
        "--config": keys,
        **({"--device": "cpu", "--attention-backend": "torch_native"} if config.cpu else {"--tp-size": config.tp}),
    }
    # An idle server would otherwise turn a processor's core around and around.
    switches = ["--enable-metrics", "--sleep-on-idle", *_lora(config)]
    if config.deterministic and not config.cpu:
        switches.append("--enable-deterministic-inference")
    pairs: Sequence[str] = [word for name, value in flags.items() if value is not None for word in (name, str(value))]
    return [python, "-m", "sglang.launch_server", *pairs, *switches, *config.extra]


def _lora(config: LaunchConfig) -> list[str]:
    """Return what a server needs to take adapters; on a CPU, where its kernels for GPUs do not run, other ones."""
    if not config.lora_rank:
        return []
    backend = ["--lora-backend", "torch_native"] if config.cpu else []
    targets = ["--lora-target-modules", *config.lora_targets]
    return ["--enable-lora", "--max-lora-rank", str(config.lora_rank), *targets, *backend]
