"""Brings a trainer's weights into SGLang in this process, and knows at every moment which weights it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from icrl.errors import WeightSyncError
from icrl.runtime.engines.protocol import PauseMode
from icrl.runtime.engines.sglang.manifest import Manifest, as_announced, check_fit, find_checkpoint, read_manifest
from icrl.runtime.engines.uncancelled import uncancelled

__all__ = ["EmbeddedWeights"]

PAUSE_S = 60.0
"""How long a cancelled pause, or its end, is waited for; one that aborts returns once every request has."""
LOAD_S = 600.0
"""How long a cancelled load is waited for: SGLang's loops break where somebody stops listening to them."""


class EmbeddedWeights:
    """The weights of SGLang in this process, as a `WeightSink`.

    After every call it holds the weights of `version`, or `fault` says why that is not known.

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
        self.version = 0
        """Version of the weights, unless there is a `fault`."""
        self.fault: str | None = None
        """Why it is not known which weights there are; `None` while it is."""
        self.cache_key: str | None = None
        """What requests send as `extra_key`, so that they find no keys and values of older weights."""
        self.cache_dropped = True
        """Whether the last update freed all keys and values; if not, requests that it found may go on with old ones."""

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Stop sampling; `abort` returns partials, the others continue after `resume`."""
        from sglang.srt.managers import io_struct  # type: ignore[import-not-found, unused-ignore]

        asked = self._manager.pause_generation(io_struct.PauseGenerationReqInput(mode=mode))
        await uncancelled(asked, patience_s=PAUSE_S)
        self._pauses += 1
        self.cache_key = f"icrl-{self._pauses}"

    async def update(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        """Replace the weights; a cancellation waits until that is done.

        Raises:
            WeightSyncError: The weights do not fit, and nothing was changed; or SGLang refused, and may hold some of
                them. The message says which.
        """
        self.cache_dropped = True
        try:
            payload = await asyncio.to_thread(self._packed, weights)
        except Exception as error:
            raise WeightSyncError(f"version {version} was not loaded; {self._holds()}: {error}") from error
        try:
            await uncancelled(self._replace(payload, version), patience_s=LOAD_S)
        except Exception as error:
            raise WeightSyncError(f"the update to version {version} failed; {self._holds()}: {error}") from error

    async def resume(self) -> None:
        """Sample again. Where the weights are not known, running requests are given back as aborted first."""
        from sglang.srt.managers import io_struct  # type: ignore[import-not-found, unused-ignore]

        if self.fault is not None:
            self._manager.abort_request(abort_all=True)
        asked = self._manager.continue_generation(io_struct.ContinueGenerationReqInput())
        await uncancelled(asked, patience_s=PAUSE_S)

    def _packed(self, weights: Iterable[tuple[str, Any]]) -> Any:
        """Collect the weights, compare them with the model's, and lay them out for every rank; in a thread."""
        given = dict(weights)
        if self._manifest is None and (checkpoint := find_checkpoint(self._model)) is not None:
            self._manifest = read_manifest(checkpoint)
        if self._manifest is not None:
            check_fit(given, self._manifest)
        return self._engine._serialize_tensors_per_rank(list(as_announced(given.items(), given)), None)

    async def _replace(self, payload: Any, version: int) -> None:
        from sglang.srt.managers import io_struct  # type: ignore[import-not-found, unused-ignore]

        manager = self._manager
        # A flush that is a part of the update fails it where requests are paused in place; so it is asked for later.
        update = io_struct.UpdateWeightsFromTensorReqInput(
            serialized_named_tensors=payload, flush_cache=False, weight_version=str(version)
        )
        self.cache_dropped = False
        self.fault = f"version {version} was sent after {self.version} and it is not known what was loaded"
        await _succeed(manager.begin_weight_update(io_struct.BeginWeightUpdateReqInput(), None))
        try:
            await _succeed(manager.update_weights_from_tensor(update, None))
        finally:
            await _succeed(manager.end_weight_update(io_struct.EndWeightUpdateReqInput(), None))
        # It is refused where requests are paused in place; then `cache_key` keeps new ones from what is stale.
        self.cache_dropped = (await manager.flush_cache()).success
        self.version, self.fault = version, None

    def _holds(self) -> str:
        if self.fault is None:
            return f"{self._name} keeps version {self.version}"
        return f"what {self._name} holds is not known ({self.fault}); send the weights again, or start anew"


async def _succeed(step: Coroutine[Any, Any, tuple[bool, str]]) -> None:
    succeeded, message = await step
    if not succeeded:
        raise WeightSyncError(message)
