"""The in-process engine: a transformers model with continuous batching, shared prefixes and replaceable weights.

Importing this module loads no torch; the model is loaded at first use, in the engine's own thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from icrl.errors import ConfigError, EngineError, nearest
from icrl.runtime.engines.architecture import read_info
from icrl.runtime.engines.meter import Meter
from icrl.runtime.engines.protocol import EngineInfo, OnDelta, PauseMode, check_request
from icrl.runtime.engines.worker import Answer, Worker
from icrl.trajectory import Generation
from icrl.types import SamplingParams

if TYPE_CHECKING:
    from icrl.runtime.engines.core import Core
    from icrl.runtime.engines.request import Request
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
            raise ConfigError(
                f"max_step_tokens: must be >= max_running ({self.max_running}), not {self.max_step_tokens}"
            )


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
        self.meter = Meter()
        """Counts what is asked, and for how long something is."""
        self._stops: dict[tuple[str, ...], StopStrings] = {}

    @property
    def info(self) -> EngineInfo:
        """What the engine can do; before the model is loaded, what its `config.json` says.

        Raises:
            ConfigError: There is no readable `config.json`.
        """
        return self._info or read_info(self.config.model)

    async def start(self) -> None:
        """Load the model, which otherwise the first request does.

        Raises:
            ConfigError: The model cannot be loaded or is not a full-attention decoder.
        """
        await self._ask(lambda core: None)

    async def generate(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        session: str | None = None,
        shared_prefix: int = 0,
        on_delta: OnDelta | None = None,
    ) -> Generation:
        """Sample a continuation of `ids`; see `Engine.generate`.

        A request of a known session runs only the tokens that its last generation did not see. The `shared_prefix`
        leading tokens are run once per weight version for all requests that share them.

        Raises:
            EngineError: The request is out of bounds, its id is in use, or the engine failed.
            ConfigError: The model cannot be loaded.
        """
        if request_id in self._live:
            raise EngineError(f"request id {request_id!r} is in use", engine=self.config.model)
        make = partial(self._request, list(ids), params, id=request_id, session=session, shared_prefix=shared_prefix)
        worker = self._started()
        self._live.add(request_id)
        result: Generation | None = None
        self.meter.enter()
        try:
            finished: Generation = await worker.send(lambda core, answer: core.submit(make(core, answer, on_delta)))
            result = finished
            return finished
        except asyncio.CancelledError:
            # Whoever cancels does not wait: the engine is told, and drops the request before its next step.
            worker.send(partial(_abort, request_id)).add_done_callback(_ignore)
            raise
        finally:
            self.meter.leave(result)
            self._live.discard(request_id)

    async def abort(self, request_id: str) -> None:
        """Make the pending `generate` return what it has; unknown ids are ignored."""
        if request_id in self._live:
            await self._ask(lambda core: core.abort(request_id))

    async def aclose(self) -> None:
        """Free the model and end the thread; pending requests return as aborted. A later request loads it again."""
        worker, self._worker, self._info = self._worker, None, None
        self.meter.resume()
        if worker is not None:
            await worker.close()

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Stop sampling until `resume`.

        Args:
            mode: `abort` returns partials. The others continue later: `in_place` with the keys and values that they
                have, `retract` after computing them again.
        """
        await self._ask(lambda core: core.pause(mode))
        self.meter.pause()

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Copy weights between two steps, in the engine's own precision; shared prefixes and sessions are dropped.

        Raises:
            WeightSyncError: Names or shapes do not fit the model; nothing was changed.
        """
        await self._ask(partial(self._update, weights, version))

    async def resume(self) -> None:
        """Sample again."""
        await self._ask(lambda core: core.resume())
        self.meter.resume()

    def _started(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self.config.model, self._build)
        return self._worker

    async def _ask(self, function: Callable[[Core], Any]) -> None:
        await self._started().ask(function)

    def _build(self) -> Core:
        """Load the model; runs in the thread."""
        from icrl.runtime.engines.core import Core
        from icrl.runtime.engines.loading import load

        config = self.config
        info = read_info(config.model)
        loaded = load(config.model, dtype=config.dtype, device=config.device, threads=config.threads)
        core = Core(
            loaded,
            info,
            max_running=config.max_running,
            max_step_tokens=config.max_step_tokens,
            max_kv_tokens=config.max_kv_tokens or loaded.kv_tokens,
        )
        self._info = core.info
        return core

    def _update(self, weights: Iterable[tuple[str, Any]], version: int, core: Core) -> None:
        core.update(weights, version)
        self._info = core.info

    def _request(
        self,
        ids: list[int],
        params: SamplingParams,
        core: Core,
        answer: Answer,
        on_delta: OnDelta | None,
        **rest: Any,
    ) -> Request:
        """Check a request and make it ready for the core; runs in the thread."""
        from icrl.runtime.engines.request import Request

        check_request(core.info, ids)
        tell = None if on_delta is None else lambda token: answer.call(partial(on_delta, (token,)))
        return Request(
            ids=ids,
            params=params,
            limit=min(params.max_tokens, core.info.context_limit - len(ids)),
            finish=answer.resolve,
            on_delta=tell,
            stop=self._stop_strings(params.stop),
            **rest,
        )

    def _stop_strings(self, strings: tuple[str, ...]) -> StopStrings | None:
        from icrl.runtime.engines.stop import StopStrings

        if not strings:
            return None
        if self.tokenizer is None:
            raise EngineError(
                "stop strings need a tokenizer; pass tokenizer=… to LocalEngine", engine=self.config.model
            )
        if strings not in self._stops:
            self._stops[strings] = StopStrings(strings, self.tokenizer.decode)
        return self._stops[strings]


def _abort(request_id: str, core: Core, answer: Answer) -> None:
    core.abort(request_id)
    answer.resolve(None)


def _ignore(future: asyncio.Future[Any]) -> None:
    future.cancelled() or future.exception()
