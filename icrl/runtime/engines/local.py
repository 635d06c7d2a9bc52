"""The in-process engine: a transformers model with continuous batching, shared prefixes and replaceable weights.

Importing this module loads no torch; the model is loaded at first use, in the engine's own thread.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from icrl.errors import ConfigError, EngineError, nearest
from icrl.runtime.engines.protocol import EngineInfo, OnDelta, check_request
from icrl.runtime.engines.worker import Answer, Worker
from icrl.types import Generation, SamplingParams

if TYPE_CHECKING:
    from icrl.runtime.engines.core import Core
    from icrl.runtime.engines.stop import StopStrings

__all__ = ["Decoder", "LocalEngine", "LocalEngineConfig"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Decoder(Protocol):
    """What the engine needs from a tokenizer, and only for stop strings."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text, special tokens included."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngineConfig:
    """How to run a model in this process."""

    model: str
    """Directory with a transformers model."""
    dtype: str = "auto"
    """`float32`, `bfloat16` or `float16`; `auto` is float32 on a CPU and bfloat16 on an accelerator."""
    device: str = "auto"
    """A torch device; `auto` is CUDA where there is one."""
    threads: int | None = None
    """CPU threads; `None` is one for models below 50 M parameters, which gain nothing from more, else all cores."""
    max_running: int = 256
    """Requests in one step at most; others wait."""
    max_step_tokens: int = 8192
    """Tokens in one step at most; longer prompts are run in chunks."""
    max_kv_tokens: int | None = None
    """Tokens whose keys and values are kept at most; `None` takes a quarter of the device's memory."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            choices = ", ".join(DTYPES)
            raise ConfigError(f"dtype: {self.dtype!r} is not one of {choices}.{nearest(self.dtype, DTYPES)}")
        for name in ("threads", "max_running", "max_kv_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be >= 1, not {value!r}")
        if self.max_step_tokens < self.max_running:
            raise ConfigError(f"max_step_tokens: must be >= max_running ({self.max_running}), not {self.max_step_tokens}")


class LocalEngine:
    """An `Engine` and `WeightSink` that computes in a thread of this process.

    In float32 on one thread, what a request samples does not depend on what else is in the batch (measured on
    x86-64 with MKL; elsewhere tokens may differ where rounding crosses a boundary of the cumulative distribution).

    Args:
        config: What to run and how.
        tokenizer: Turns ids into text; needed only by requests with stop strings.

    Example:
        >>> engine = LocalEngine(LocalEngineConfig(model="no/such/directory"))
        >>> engine.info
        Traceback (most recent call last):
        icrl.errors.ConfigError: model: 'no/such/directory' has no readable config.json
    """

    def __init__(self, config: LocalEngineConfig, *, tokenizer: Decoder | None = None) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._info: EngineInfo | None = None
        self._worker: Worker | None = None
        self._live: set[str] = set()
        self._stops: dict[tuple[str, ...], StopStrings] = {}

    @property
    def info(self) -> EngineInfo:
        """What the engine can do; before the model is loaded, what its `config.json` says.

        Raises:
            ConfigError: There is no readable `config.json`.
        """
        if self._info is None:
            self._info = _read_info(self.config.model)
        return self._info

    async def start(self) -> None:
        """Load the model, which otherwise the first request does.

        Raises:
            ConfigError: The model cannot be loaded or is not a full-attention decoder.
        """
        await self._started()

    async def _started(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self.config.model, self._build)
            self._info = await self._worker.ask(lambda core: core.info)
        ...
