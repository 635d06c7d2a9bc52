"""Which models the in-process engine and the shared-prefix loss can run, and what a model says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from icrl.errors import ConfigError
from icrl.runtime.engines.protocol import EngineInfo

__all__ = ["read_info", "refusal"]

CAPABILITIES = frozenset({"logprobs", "abort", "prefix_cache", "weights", "deltas"})

CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
"""Names under which configurations keep the context length."""


def refusal(config: Any, model_class: type | None = None) -> str | None:
    """Say why a model cannot be run, or return `None` if it can.

    Args:
        config: A transformers configuration.
        model_class: The class of the model, where it is known.

    Example:
        >>> class Config:
        ...     is_encoder_decoder = True
        >>> refusal(Config())
        'is an encoder-decoder'
    """
    config = getattr(config, "get_text_config", lambda: config)()
    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder-decoder"
    other = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"})
    if other:
        return f"has layers of type {other[0]!r}, and only 'full_attention' is supported"
    if getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None):
        return f"attends to a sliding window of {config.sliding_window} tokens only"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return f"rescales its positions by the longest sequence of a batch (rope_type {rope['rope_type']!r})"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "caps its attention scores (attn_logit_softcapping)"
    if model_class is not None and not getattr(model_class, "_supports_attention_backend", True):
        return "does not let its attention function be replaced"
    return None


def read_info(directory: str) -> EngineInfo:
    """Read what can be known of a model without loading it.

    Raises:
        ConfigError: There is no readable `config.json`, or it lacks the vocabulary's or the context's size.
    """
    try:
        config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {directory!r} has no readable config.json") from error
    config = {**config, **config.get("text_config", {})}
    context = next((config[key] for key in CONTEXT_KEYS if key in config), None)
    if context is None or "vocab_size" not in config:
        missing = "vocab_size" if context else CONTEXT_KEYS[0]
        raise ConfigError(f"model: {directory!r} does not state its {missing} in config.json")
    return EngineInfo(name=directory, vocab_size=config["vocab_size"], context_limit=context, capabilities=CAPABILITIES)
