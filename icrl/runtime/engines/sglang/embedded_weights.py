"""Brings a trainer's weights into SGLang in this process, and knows at every moment which weights it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from icrl.errors import WeightSyncError
from icrl.runtime.engines.protocol import PauseMode
from icrl.runtime.engines.sglang.manifest import Manifest, accept, as_announced, find_checkpoint, read_manifest
from icrl.runtime.engines.sglang.versions import MIXED
from icrl.runtime.engines.uncancelled import uncancelled

__all__ = ["EmbeddedWeights"]

CONTROL_S = 60.0
"""Deadline of what moves no weights; a pause that aborts waits until every request has returned."""
LOAD_S = 600.0
"""Deadline of a load."""

_T = TypeVar("_T")


class EmbeddedWeights:
    """The weights of SGLang in this process, as a `WeightSink`.

    After every call it holds the weights of `version`, or `fault` says why that is not known. SGLang's loops break
    where somebody stops listening to them, so a cancellation waits for what it has been asked.

    Args:
        engine: The `sglang.Engine`.
        model: Directory of the model, or its name at a hub.
        name: What errors call it.
    """

    def __init__(self, engine: Any, *, model: str, name: str) -> None:
        self._engine = engine
        self._manager = engine.tokenizer_manager
        self._model = model
        self._name = name
        self._pauses = 0
        self._manifest: Manifest | None = None
        self._changing = asyncio.Lock()
        self.open = asyncio.Event()
        """Set while requests may be sent: what waits in SGLang itself could not be ended, and would find whatever
        weights are there when it goes on."""
        self.open.set()
        self.version = 0
        """Version of the weights, unless there is a `fault`."""
        self.fault: str | None = None
        """Why it is not known which weights there are; `None` while it is."""
        self.cache_key: str | None = None
        """What requests send as `extra_key`, so that they find no keys and values of older weights."""
        self.cache_dropped = True
        """Whether the last update freed all keys and values; if not, requests that it found may go on with old ones."""

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Stop sampling; `abort` returns partials, the others continue after `resume`.

        Raises:
            WeightSyncError: It takes too long, as an `abort` does of what is paused already.
        """
        from sglang.srt.managers import io_struct  # type: ignore[import-not-found, unused-ignore]

        self.open.clear()
        await self._ask(self._manager.pause_generation(io_struct.PauseGenerationReqInput(mode=mode)), CONTROL_S)
        self._pauses += 1
        self.cache_key = f"icrl-{self._pauses}"

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Replace the weights.

        Raises:
            WeightSyncError: The weights do not fit, and nothing was changed; or SGLang refused, and may hold some of
                them. The message says which.
        """
        self.cache_dropped = True
        async with self._changing:
            try:
                packed = asyncio.to_thread(self._packed, weights)  # reads tensors that training changes
                payload, manifest = await uncancelled(packed, patience_s=LOAD_S)
            except Exception as error:
                raise WeightSyncError(f"version {version} was not loaded; {self._holds()}: {error}") from error
            opened = self.open.is_set()
            self.open.clear()
            try:
                await uncancelled(self._replace(payload, version), patience_s=LOAD_S)
            except Exception as error:
                raise WeightSyncError(f"the update to version {version} failed; {self._holds()}: {error}") from error
            finally:
                if opened:
                    self.open.set()
            self._manifest = manifest

    async def resume(self) -> None:
        """Sample again. Where the weights are not known, running requests are given back as aborted first.

        Raises:
            WeightSyncError: It takes too long.
        """
        from sglang.srt.managers import io_struct  # type: ignore[import-not-found, unused-ignore]

        try:
            if self.fault is not None:
                self._manager.abort_request(abort_all=True)
                unknown = io_struct.UpdateWeightVersionReqInput(new_version=MIXED)
                await self._ask(self._manager.update_weight_version(unknown), CONTROL_S)
        finally:
            await self._ask(self._manager.continue_generation(io_struct.ContinueGenerationReqInput()), CONTROL_S)
            self.open.set()

    async def settle(self) -> None:
        """Wait until no update is under way: one that lost its engine would never end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CONTROL_S), self._changing:
                pass

    def _packed(self, weights: Iterable[tuple[str, Any]]) -> tuple[Any, Manifest]:
        """Collect the weights, compare them with the model's, and lay them out for every rank; in a thread."""
        given = dict(weights)
        manifest = self._manifest
        if manifest is None and (checkpoint := find_checkpoint(self._model)) is not None:
            manifest = read_manifest(checkpoint)
        manifest = accept(given, manifest)
        return self._engine._serialize_tensors_per_rank(list(as_announced(given.items(), given)), None), manifest

    async def _replace(self, payload: Any, version: int) -> None:
        from sglang.srt.managers import io_struct  # type: ignore[import-not-found, unused-ignore]

        manager = self._manager
        # A flush that is a part of the update fails it where requests are paused in place; so it is asked for later.
        update = io_struct.UpdateWeightsFromTensorReqInput(
            serialized_named_tensors=payload, flush_cache=False, weight_version=str(version)
        )
        self.cache_dropped = False
        self.fault = f"version {version} was sent after {self.version} and it is not known what was loaded"
        await _succeed(manager.begin_weight_update(io_struct.BeginWeightUpdateReqInput(), None), CONTROL_S)
        try:
            await _succeed(manager.update_weights_from_tensor(update, None), LOAD_S)
        finally:
            await _succeed(manager.end_weight_update(io_struct.EndWeightUpdateReqInput(), None), CONTROL_S)
        # It is refused where requests are paused in place; then `cache_key` keeps new ones from what is stale.
        self.cache_dropped = (await _within(manager.flush_cache(), CONTROL_S)).success
        self.version, self.fault = version, None

    async def _ask(self, request: Coroutine[Any, Any, Any], timeout_s: float) -> None:
        try:
            await uncancelled(_within(request, timeout_s), patience_s=timeout_s)
        except TimeoutError as error:
            raise WeightSyncError(f"no answer in {timeout_s:g} s; {self._holds()}") from error

    def _holds(self) -> str:
        if self.fault is None:
            return f"{self._name} keeps version {self.version}"
        return f"what {self._name} holds is not known ({self.fault}); send the weights again, or start anew"


async def _within(request: Awaitable[_T], timeout_s: float) -> _T:
    async with asyncio.timeout(timeout_s):
        return await request


async def _succeed(step: Coroutine[Any, Any, tuple[bool, str]], timeout_s: float) -> None:
    succeeded, message = await _within(step, timeout_s)
    if not succeeded:
        raise WeightSyncError(message)
