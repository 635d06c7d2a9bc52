"""Refusing to train against engines that cannot be trained against."""

from __future__ import annotations

from icrl.errors import ConfigError
from icrl.runtime.engines.protocol import Engine

__all__ = ["require_trainable"]


def require_trainable(engine: Engine) -> None:
    """Refuse an engine that gives no log-probabilities or takes no weights.

    Raises:
        ConfigError: It cannot be trained against; the message says what is missing.

    Example:
        >>> from icrl.runtime.engines.openai import OpenAIEngine
        >>> require_trainable(OpenAIEngine("http://127.0.0.1:8000/v1", model="m"))
        Traceback (most recent call last):
        icrl.errors.ConfigError: engine: openai:http://127.0.0.1:8000/v1#m gives no log-probabilities and takes no \
weights, so that it can run agents, but not train; use an SGLang server or the in-process engine
    """
    capabilities = engine.info.capabilities
    lacks = {"logprobs": "gives no log-probabilities", "weights": "takes no weights"}
    missing = " and ".join(what for name, what in lacks.items() if name not in capabilities)
    if missing:
        raise ConfigError(
            f"engine: {engine.info.name} {missing}, so that it can run agents, but not train; use an SGLang server or "
            "the in-process engine"
        )
