"""Loading a model for inference, and replacing its weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from icrl.errors import ConfigError, WeightSyncError, nearest
from icrl.runtime.engines.architecture import refusal
from icrl.runtime.engines.attention import install
from icrl.runtime.engines.layout import flatten
from icrl.runtime.engines.ragged import available
from icrl.runtime.engines.request import Request
from icrl.runtime.engines.slots import SlotStore
from icrl.types import SamplingParams

__all__ = ["LoadedModel", "copy_weights", "load"]

SMALL = 50_000_000
"""Parameters below which a second thread costs more in synchronisation than it computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run."""

    model: Any
    """The transformers model, with our attention."""
    device: torch.device
    """Where it is."""
    dtype: torch.dtype
    """Its precision."""
    end_ids: frozenset[int]
    """Tokens that end a generation."""
    threads: int
    """CPU threads to compute with."""
    ragged: bool
    """Whether decoding attends through compiled loops (`ragged`) instead of batched products."""
    kv_tokens: int
    """Tokens whose keys and values fill a quarter of the device's memory."""


def load(directory: str, *, dtype: str, device: str, threads: int | None) -> LoadedModel:
    """Load a model directory.

    Raises:
        ConfigError: There is no loadable model, or it is not a full-attention decoder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    place = torch.device(_device(device))
    precision = _dtype(dtype, place)
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {directory!r} cannot be loaded: {error}") from error
    _refuse(directory, config.model_type, refusal(config))
    with _quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=precision)
        except (OSError, ValueError) as error:
            raise ConfigError(f"model: {directory!r} cannot be loaded: {error}") from error
    _refuse(directory, config.model_type, refusal(config, type(model)))
    model.to(place).eval().requires_grad_(False)
    size = sum(p.numel() for p in model.parameters())
    threads = threads or (1 if size < SMALL else os.cpu_count() or 1)
    loaded = LoadedModel(
        model=model,
        device=place,
        dtype=precision,
        end_ids=_end_ids(model),
        threads=threads,
        ragged=place.type == "cpu" and precision == torch.float32 and threads == 1 and available(),
        kv_tokens=_memory(place) // 4 // _kv_token_bytes(model, precision),
    )
    _check_attention(directory, loaded)
    return loaded


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `auto`: float32 on a CPU, where bfloat16 measured no faster and the trainer compares logprobs."""
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return choices[name]


def _refuse(directory: str, kind: str, reason: str | None) -> None:
    if reason is not None:
        raise ConfigError(f"model: {directory!r} ({kind}) {reason}; the local engine runs full-attention decoders")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing a progress bar into a terminal that is not its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _end_ids(model: Any) -> frozenset[int]:
    settings = getattr(model, "generation_config", None)
    ids = getattr(settings, "eos_token_id", None)
    ids = model.config.get_text_config().eos_token_id if ids is None else ids
    return frozenset([ids] if isinstance(ids, int) else ids or ())


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _kv_token_bytes(model: Any, dtype: torch.dtype) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_hidden_layers * 2 * heads * width * dtype.itemsize)


@torch.inference_mode()
def _check_attention(directory: str, loaded: LoadedModel) -> None:
    """Compare the model's own forward with ours in three steps, which any state beyond keys and values breaks."""
    model = loaded.model
    ids = [(7 * i + 3) % model.config.get_text_config().vocab_size for i in range(9)]
    expected = model(torch.tensor([ids], device=loaded.device), use_cache=False).logits[0, -1].float()
    install(model)
    store = SlotStore(loaded.device, ragged=loaded.ragged)
    store.repack([], slots=4, capacity=32, length=0)
    probe = Request(id="", ids=ids, params=SamplingParams(), limit=1, finish=lambda _: None, slot=1)
    for n in (5, 3, 1):
        runs = ([probe], []) if n == 1 else ([], [(probe, n)])
        logits = flatten(store, *runs, loaded.dtype).run(model, [n - 1])
        probe.computed += n
    distance = (logits[0].float() - expected).abs().max().item()
    scale = expected.abs().max().item() + 1
    tolerance = 1e-3 if loaded.dtype == torch.float32 else 0.1
    if not distance <= tolerance * scale:
        _refuse(
            directory, model.config.model_type, f"does not compute plain attention (logits differ by {distance:.3g})"
        )


def copy_weights(model: Any, weights: Iterable[tuple[str, Any]]) -> None:
    """Copy tensors into a model's parameters, in its own precision.

    All names and shapes are checked before the first copy. A tied tensor may come under any or all of its names.

    Raises:
        WeightSyncError: A name is missing or unknown, or a shape differs.
    """
    own = model.state_dict(keep_vars=True)
    given = dict(weights)
    unknown = [name for name in given if name not in own]
    if unknown:
        raise WeightSyncError(
            f"the model has no weight {unknown[0]!r} ({len(unknown)} unknown).{nearest(unknown[0], own)}"
        )
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise WeightSyncError(f"{name}: shape {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}")
    covered = {own[name].data_ptr() for name in given}
    missing = [name for name, tensor in own.items() if tensor.data_ptr() not in covered]
    if missing:
        raise WeightSyncError(f"no weight was given for {missing[0]!r} ({len(missing)} missing)")
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)
