"""SGLang in this process, without HTTP: `sglang.Engine` behind the engine's protocol.

For programs that run in SGLang's own environment. SGLang starts processes of its own, installs signal handlers, and at
its end kills *every* child process of this one, whoever started it; a server of its own (`SGLangEngine`) does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from icrl.errors import ConfigError, EngineError, MissingExtraError
from icrl.runtime.engines.meter import Meter
from icrl.runtime.engines.protocol import FOREIGN, EngineInfo, LostRequest, OnDelta, PauseMode, check_request
from icrl.runtime.engines.sglang.aborts import Aborts
from icrl.runtime.engines.sglang.config import SGLangConfig
from icrl.runtime.engines.sglang.embedded_weights import EmbeddedWeights
from icrl.runtime.engines.sglang.facts import parse_version
from icrl.runtime.engines.sglang.live import Live, unique_rid
from icrl.runtime.engines.sglang.sampling import body
from icrl.runtime.engines.sglang.streaming import Arrived
from icrl.runtime.engines.sglang.versions import UNTOUCHED, Versions
from icrl.runtime.engines.sglang.wire import Answer, check_end, check_tokens, finish_reason, spans
from icrl.trajectory import Generation
from icrl.types import SamplingParams

__all__ = ["EmbeddedEngine"]

OLDEST = (0, 5, 21)
"""The oldest version whose weights can be replaced as it is done here."""
_CAPABILITIES = frozenset({"logprobs", "abort", "prefix_cache", "weights", "deltas"})
_CONFIG = SGLangConfig()


class EmbeddedEngine:
    """SGLang in this process.

    Open it in the main thread before the event loop runs; afterwards it belongs to the loop that first uses it.

    Args:
        model: Directory of the model, or its name at a hub.
        options: SGLang's own settings, such as `tp_size=2`.

    Raises:
        MissingExtraError: SGLang is not installed.
        ConfigError: Its version is too old.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._version = _installed()
        import sglang  # type: ignore[import-not-found, unused-ignore]

        self._engine = sglang.Engine(model_path=model, **options)
        self._manager: Any = self._engine.tokenizer_manager
        self._deterministic = bool(getattr(self._engine.server_args, "enable_deterministic_inference", False))
        config = self._manager.model_config
        self._weights = EmbeddedWeights(self._engine, model=model, name=f"sglang {self._version} ({model})")
        self._versions = Versions(UNTOUCHED)
        self.meter = Meter()
        """Counts what is asked here, and for how long something is."""
        self._live: dict[str, Live] = {}
        self._waiting: set[Live] = set()
        self._paused_over: tuple[Live, ...] = ()
        self._version_at_pause = 0
        self._aborts = Aborts(self._end_there, patience_s=_CONFIG.abort_s)
        self._closed = False
        self._info = EngineInfo(
            name=f"sglang {self._version} ({model})",
            vocab_size=int(config.vocab_size),
            context_limit=int(config.context_len),
            capabilities=_CAPABILITIES,
        )

    @property
    def info(self) -> EngineInfo:
        """What the engine can do."""
        if self._info.weight_version != self._weights.version:
            self._info = replace(self._info, weight_version=self._weights.version)
        return self._info

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
        """Sample a continuation of `ids`; see `Engine.generate`. Prefixes are found without hints.

        Raises:
            EngineError: The request is out of bounds, its id is in use, or SGLang refuses it.
            LostRequest: An update that failed half-way has left unknown weights.
        """
        if self._closed or request_id in self._live:
            problem = "is closed" if self._closed else f"request id {request_id!r} is in use"
            raise EngineError(problem, engine=self._info.name)
        check_request(self._info, ids)
        live = Live(rid=unique_rid(request_id), prompt_tokens=len(ids), arrived=Arrived(engine=self._info.name))
        self._live[request_id] = live
        result: Generation | None = None
        self.meter.enter()
        try:
            result = await self._converse(live, ids, params, on_delta)
            if any(span.version == FOREIGN for span in result.versions):
                why = "some of it was sampled by unknown weights: an update failed half-way"
                raise LostRequest(why, engine=self._info.name, partial=result)
            return result
        except (ValueError, msgspec.ValidationError) as error:
            raise EngineError(str(error), engine=self._info.name) from error
        except BaseException:
            self._manager.abort_request(rid=live.rid)
            raise
        finally:
            self.meter.leave(result)
            live.done.set()
            del self._live[request_id]

    async def abort(self, request_id: str) -> None:
        """Make the pending request return what it has, whether or not SGLang has begun it."""
        live = self._live.get(request_id)
        if live is not None:
            self._end(live)

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Stop sampling; `abort` returns partials, the others continue after `resume`."""
        await self._weights.pause(mode)
        self._paused_over = tuple(live for live in self._live.values() if live not in self._waiting)
        self._version_at_pause = self._weights.version
        self.meter.pause()

    async def resume(self) -> None:
        """Sample again. Where the weights are not known, running requests are given back as aborted first."""
        await self._weights.resume()
        self._paused_over = ()
        self.meter.resume()

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Replace the weights and raise the version; see `WeightSink.update`. A cancellation waits until it is done.

        Raises:
            WeightSyncError: The weights do not fit, or SGLang refused them; the message says what it holds now.
        """
        try:
            await self._weights.update(weights, version)
        finally:
            newer = self._weights.version if self._weights.fault is None else FOREIGN
            for live in () if self._weights.cache_dropped else self._paused_over:
                live.crossings[self._version_at_pause] = newer

    async def aclose(self) -> None:
        """Abort everything and end SGLang's processes, and with them every other child of this process."""
        if not self._closed:
            self._closed = True
            for live in self._live.values():
                self._end(live)
            await self._aborts.finish()
            await self._weights.settle()
            await asyncio.to_thread(self._engine.shutdown)

    def _end(self, live: Live) -> None:
        if live in self._waiting:  # SGLang does not know it
            live.aborted = True
            live.give_up()
        else:
            self._aborts.end(live)

    async def _end_there(self, rid: str) -> None:
        # It remembers an abort that overtook its request, sends no other one, and the request goes on to its end.
        if getattr(self._manager.rid_to_state.get(rid), "dispatched", True):
            self._manager.abort_request(rid=rid)

    async def _converse(
        self, live: Live, ids: Sequence[int], params: SamplingParams, on_delta: OnDelta | None
    ) -> Generation:
        try:
            async with live.scope:
                await self._turn(live)
                await self._take(live, self._request(live, ids, params, watched=on_delta is not None), on_delta)
        except TimeoutError:
            if not live.aborted:
                raise
            return live.partial(self._versions)
        return self._result(live, params)

    async def _turn(self, live: Live) -> None:
        """Wait while weights are replaced."""
        self._waiting.add(live)
        try:
            await self._weights.open.wait()
        finally:
            self._waiting.discard(live)
        if self._weights.fault is not None:
            raise EngineError(f"its weights are unknown: {self._weights.fault}", engine=self._info.name)

    def _request(self, live: Live, ids: Sequence[int], params: SamplingParams, *, watched: bool) -> dict[str, Any]:
        """Return the arguments of a request: those of the server's protocol.

        It is always streamed: what SGLang refuses later on comes as an event then, and not as FastAPI's exception.
        """
        room = self._info.context_limit - len(ids)
        most = min(params.max_tokens, room)
        request: dict[str, Any] = msgspec.json.decode(
            body(
                b"",
                params,
                rid=live.rid,
                room=room,
                chunk_tokens=_CONFIG.events_of(most, watched=watched) or _CONFIG.stream_from,
                deterministic=self._deterministic,
                cache_key=self._weights.cache_key,
            )
        )
        return {**request, "input_ids": list(ids)}

    async def _take(self, live: Live, request: dict[str, Any], on_delta: OnDelta | None) -> None:
        from sglang.srt.managers.io_struct import GenerateReqInput  # type: ignore[import-not-found, unused-ignore]

        arrived = live.arrived
        # `Engine.async_generate` does the same, but knows no `extra_key`.
        async with aclosing(self._manager.generate_request(GenerateReqInput(**request), None)) as replies:
            async for reply in replies:
                before = len(arrived.ids)
                arrived.take(msgspec.convert(reply, Answer))
                check_end(arrived.finish, engine=self._info.name)
                if on_delta is not None and len(arrived.ids) > before:
                    on_delta(arrived.ids[before:])

    def _result(self, live: Live, params: SamplingParams) -> Generation:
        arrived, name = live.arrived, self._info.name
        reason = finish_reason(arrived.finish, params.stop, engine=name)
        check_tokens(arrived.ids, self._info.vocab_size, engine=name)
        return live.generation(reason, spans(arrived.meta, len(arrived.ids), self._versions, engine=name))


def _installed() -> str:
    try:
        found = version("sglang")
    except PackageNotFoundError:
        raise MissingExtraError("sglang", extra="sglang") from None
    if parse_version(found) < OLDEST:
        raise ConfigError(f"SGLang {found} in this process is too old; from {'.'.join(map(str, OLDEST))} on it works")
    return found
