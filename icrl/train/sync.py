"""From the trainer's weights to the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from icrl.errors import WeightSyncError
from icrl.runtime.engines.protocol import WeightSink

__all__ = ["merged_weights", "push"]


async def push(sink: WeightSink, model: nn.Module, version: int) -> None:
    """Copy the model's weights into an engine, which samples under `version` from then on.

    Args:
        sink: The engine.
        model: A transformers model, or a peft model whose adapters are merged for the copy.
        version: The new weight version.

    Raises:
        WeightSyncError: The engine refused; it stays paused, so that nothing is sampled under a wrong name.
    """
    await sink.pause()
    with merged_weights(model) as weights:
        await sink.update(weights, version)
    await sink.resume()


@contextmanager
def merged_weights(model: nn.Module) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """Yield the names and tensors of the plain model; LoRA adapters are merged in and taken out again.

    Raises:
        WeightSyncError: An adapter cannot be merged.
    """
    adapter = hasattr(model, "merge_adapter")
    if adapter:
        try:
            model.merge_adapter()  # type: ignore[operator]
        except (ValueError, NotImplementedError) as error:
            raise WeightSyncError(f"the adapter cannot be merged: {error}") from error
    try:
        yield _plain(model.get_base_model() if adapter else model)  # type: ignore[operator]
    finally:
        if adapter:
            model.unmerge_adapter()  # type: ignore[operator]


def _plain(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in model.state_dict().items():
        if "lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor.detach()
