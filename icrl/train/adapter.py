"""From a peft model to its adapter alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from icrl.errors import WeightSyncError
from icrl.runtime.engines.adapter import Adapter
from icrl.train.gather import gathered

__all__ = ["adapter_of"]


def adapter_of(model: nn.Module) -> Adapter:
    """Copy the active adapter of a peft model, as `save_pretrained` would write it.

    Args:
        model: The unwrapped model. Sharded adapters need all processes to call; that is written and untested.

    Raises:
        WeightSyncError: The model has no LoRA adapter, or several at once.
    """
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        raise WeightSyncError("the model has no adapter that could be sent; train with lora.rank")
    configs: Any = model.peft_config
    active: Any = model.active_adapters
    if len(active) != 1:
        raise WeightSyncError(f"the model has {len(active)} active adapters, where one is sent")
    from peft import get_peft_model_state_dict

    with gathered(model, all_at_once=True):
        state = get_peft_model_state_dict(model, adapter_name=active[0])
        tensors = {name: _copy(tensor) for name, tensor in state.items()}
    adapter = Adapter(config={}, tensors=tensors)
    config = {**_plain(configs[active[0]].to_dict()), "inference_mode": True, "target_modules": list(adapter.targets)}
    return Adapter(config=config, tensors=tensors)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON can hold; sets become lists, as where peft writes them."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _copy(tensor: Any) -> torch.Tensor:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    copied: torch.Tensor = whole.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    return copied
