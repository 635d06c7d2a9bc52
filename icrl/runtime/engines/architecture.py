"""Which models the in-process engine and the shared-prefix loss can run: plain full-attention decoders."""

from __future__ import annotations

from typing import Any

__all__ = ["refusal"]


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
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "caps its attention scores (attn_logit_softcapping)"
    if model_class is not None and not getattr(model_class, "_supports_attention_backend", True):
        return "does not let its attention function be replaced"
    return None
