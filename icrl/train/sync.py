"""From the trainer's weights to the engine's."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn

from icrl.errors import IcrlError, WeightSyncError
from icrl.runtime.engines.adapter import AdapterMode
from icrl.runtime.engines.protocol import PauseMode, WeightSink
from icrl.runtime.engines.uncancelled import uncancelled
from icrl.train.adapter import adapter_of
from icrl.train.gather import Weights, gathered, is_sharded, unwrapped

__all__ = ["merged_weights", "push"]

RESUME_S = 120.0
"""How long a cancelled push waits for the engine to go on; longer than any engine gives its server."""


async def push(
    sink: WeightSink | None,
    model: nn.Module,
    version: int,
    *,
    mode: PauseMode = "in_place",
    adapters: AdapterMode = "merged",
) -> None:
    """Copy the model's weights into an engine, which samples under `version` from then on.

    Whatever happens, the engine is told to go on: with the new weights, or with those that it had. An engine that
    does not know any more what it holds looks after itself (see `ServerWeights.fault`).

    Args:
        sink: The engine; `None` on processes that only take part in gathering. A sharded model needs all processes
            to call, and exactly the first of them to have the engine.
        model: A transformers model, maybe wrapped or sharded by accelerate, or a peft model.
        version: The new weight version.
        mode: What becomes of running requests; with `lora`, they keep the adapter that they have.
        adapters: Whether a peft model's adapter is merged for the copy, or sent by itself (`lora`) to an engine that
            was made for that; it is not paused then.

    Raises:
        WeightSyncError: The engine refused, or an adapter cannot be merged or sent; on every process, where there are
            several.
    """
    model = await asyncio.to_thread(unwrapped, model)
    shared = dist.is_initialized() and dist.get_world_size() > 1 and is_sharded(model)
    error: BaseException | None = None
    try:
        if adapters == "lora":
            adapter = await asyncio.to_thread(adapter_of, model)
            if sink is not None:
                await _replace(sink, adapter, version, None)
        else:
            await _push_merged(sink, model, version, mode, shared=shared)
    except BaseException as caught:  # the others would wait for one that was cancelled
        error = caught
    if shared:
        error = await asyncio.to_thread(_agreed, error)
    if error is not None:
        raise error


async def _push_merged(
    sink: WeightSink | None, model: nn.Module, version: int, mode: PauseMode, *, shared: bool
) -> None:
    with merged_weights(model) as weights:
        try:
            if sink is not None:
                await _replace(sink, weights, version, mode)
        finally:
            if shared:
                await asyncio.to_thread(weights.drain)


async def _replace(sink: WeightSink, weights: Iterable[tuple[str, Any]], version: int, mode: PauseMode | None) -> None:
    """Update a sink, paused meanwhile where there is a mode; it goes on afterwards, whoever has paused it."""
    try:
        if mode is not None:
            await sink.pause(mode)
        await sink.update(weights, version)
    except BaseException as error:
        try:
            await uncancelled(sink.resume(), patience_s=RESUME_S)
        except IcrlError as also:
            error.add_note(f"Nor could it be resumed: {also}")
        raise
    await uncancelled(sink.resume(), patience_s=RESUME_S)


def _agreed(error: BaseException | None) -> BaseException | None:
    """Tell all processes whether one of them failed, so that none goes on alone."""
    said: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(said, None if error is None else str(error) or type(error).__name__)
    if error is not None:
        return error
    wrong = [(rank, text) for rank, text in enumerate(said) if text is not None]
    return WeightSyncError(f"process {wrong[0][0]}: {wrong[0][1]}") if wrong else None


@contextmanager
def merged_weights(model: nn.Module) -> Iterator[Weights]:
    """Yield the names and tensors of the plain model; LoRA adapters are merged in and taken out again.

    Args:
        model: An unwrapped model, maybe sharded. Adapters on sharded models are written and untested.

    Raises:
        WeightSyncError: An adapter cannot be merged.
    """
    adapter: Any = model if hasattr(model, "merge_adapter") else None
    with gathered(model, all_at_once=adapter is not None):
        if adapter is None:
            yield Weights(model)
            return
        try:
            _merge(adapter)
            yield Weights(adapter.get_base_model())
        finally:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already unmerged")  # layers that a failure left out
                adapter.unmerge_adapter()


def _merge(adapter: Any) -> None:
    try:
        adapter.merge_adapter()
    except (ValueError, NotImplementedError) as error:
        raise WeightSyncError(f"the adapter cannot be merged: {error}") from error
