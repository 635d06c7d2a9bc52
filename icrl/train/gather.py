"""Whole tensors from models whose parameters are spread over processes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

__all__ = ["Weights", "gathered", "is_sharded", "plain_name", "unwrapped"]

WRAPPERS = ("DataParallel", "DeepSpeedEngine", "DistributedDataParallel", "OptimizedModule")
"""Names of classes, so that none of their packages is loaded where it is not used."""


class Weights:
    """The names and whole tensors of a model, gathered one by one while they are iterated over, once.

    Tied parameters come once, under the name that comes first in the model (that of checkpoints); buffers do not come.
    Where parameters are sharded, every process must iterate, as gathering one takes all of them.

    Args:
        model: The plain model: without wrappers, and without adapters that are not merged.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> [(name, tuple(tensor.shape)) for name, tensor in Weights(model)]
        [('weight', (1, 2)), ('bias', (1,))]
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {
            plain_name(name): parameter
            for name, parameter in model.named_parameters()
            if "lora_" not in name and ".original_module." not in name
        }
        self._rest = iter(self._parameters.items())

    @property
    def layout(self) -> Mapping[str, torch.Tensor]:
        """Tensors with the names, whole shapes and types of what will come; nothing is gathered for it."""
        return {name: torch.empty(_shape(p), dtype=p.dtype, device="meta") for name, p in self._parameters.items()}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._rest:
            yield name, _whole(parameter)

    def drain(self) -> None:
        """Gather what is left, for the sake of the other processes."""
        for _ in self:
            pass


def plain_name(name: str) -> str:
    """Return a parameter's name in the checkpoint, without what FSDP, compilation and peft put into it.

    Example:
        >>> plain_name("_fsdp_wrapped_module.model.q_proj.base_layer.weight")
        'model.q_proj.weight'
        >>> plain_name("lm_head.modules_to_save.default.weight")
        'lm_head.weight'
    """
    name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
    return name.replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", "").replace(".base_layer.", ".")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within what accelerate wraps around it: DDP, DeepSpeed, compilation. FSDP stays."""
    if type(model).__name__ not in WRAPPERS:
        return model
    from accelerate.utils import extract_model_from_parallel

    plain: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return plain


def is_sharded(model: nn.Module) -> bool:
    """Say whether whole parameters exist only after all processes have worked together."""
    return _is_fsdp1(model) or any(_is_dtensor(p) or _is_zero3(p) for p in model.parameters())


def gathered(model: nn.Module, *, all_at_once: bool) -> AbstractContextManager[None]:
    """Make parameters whole that cannot be gathered one by one; does nothing for the others.

    FSDP1 (its parameters are flat within a unit) and ZeRO-3 are written and untested.

    Args:
        model: The unwrapped model.
        all_at_once: Needed by what computes with several parameters, as the merging of adapters does.
    """
    if _is_fsdp1(model):
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel.summon_full_params(model, writeback=False)
    if all_at_once and any(_is_zero3(p) for p in model.parameters()):
        return _zero3(list(model.parameters()))
    return nullcontext()


@contextmanager
def _zero3(parameters: list[nn.Parameter]) -> Iterator[None]:
    import deepspeed  # type: ignore[import-not-found]

    # Rank 0 may change them while they are gathered; merging an adapter and taking it out again leaves them as before.
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
        yield


def _whole(parameter: Any) -> torch.Tensor:
    whole: torch.Tensor = parameter.detach()
    if _is_dtensor(parameter):
        whole = parameter.detach().full_tensor()
    elif _is_zero3(parameter) and whole.numel() != parameter.ds_numel:
        with _zero3([parameter]):
            whole = parameter.detach().clone()
    return whole


def _shape(parameter: Any) -> torch.Size:
    shape: torch.Size = parameter.ds_shape if _is_zero3(parameter) else parameter.shape
    return shape


def _is_dtensor(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "full_tensor")


def _is_zero3(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_numel")


def _is_fsdp1(model: nn.Module) -> bool:
    """Look at the class's name, so that FSDP is not loaded where it is not used."""
    return any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
