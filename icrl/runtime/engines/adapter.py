"""A LoRA adapter on its way from a trainer to an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Adapter", "AdapterMode", "unloadable"]

AdapterMode = Literal["merged", "lora"]
"""How adapters reach an engine: inside the weights that they change, or by themselves."""

_TOGETHER = {"q_proj": "v_proj", "v_proj": "q_proj", "k_proj": "q_proj", "up_proj": "gate_proj"}
"""Modules that SGLang 0.5.23 takes only together with another one; a `k_proj` alone ends the server."""

_UNHEEDED = (
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices"),
    *("lora_bias", "target_parameters", "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora"),
    *("arrow_config", "kasa_config", "monteclora_config"),
)
"""What peft may do beside low ranks, and SGLang refuses or, worse, leaves out."""

_BASE_KEPT = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the model as it was; others (PiSSA, OLoRA, CorDA, LoftQ, …) take something out of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter, as peft writes it; iterates over its tensors, as weights do.

    Engines that were made for adapters take it in `WeightSink.update`; others refuse its tensors' names.

    Example:
        >>> adapter = Adapter(config={"r": 4}, tensors={"base_model.model.q_proj.lora_A.weight": None})
        >>> [name for name, _ in adapter], adapter.targets
        (['base_model.model.q_proj.lora_A.weight'], ('q_proj',))
    """

    config: Mapping[str, Any]
    """What belongs into `adapter_config.json`."""
    tensors: Mapping[str, Any]
    """What belongs into `adapter_model.safetensors`: tensors by name, not shared with the trainer."""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.tensors.items())

    @property
    def targets(self) -> tuple[str, ...]:
        """Modules that it changes, sorted."""
        return tuple(sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in self.tensors}))

    @property
    def unfit(self) -> str | None:
        """Why an SGLang server would not sample what the trainer computes with it; `None` where it would."""
        if (kind := self.config.get("peft_type", "LORA")) != "LORA":
            return f"it is no LoRA but {getattr(kind, 'value', kind)}"
        if (begun := self.config.get("init_lora_weights", True)) not in _BASE_KEPT:
            return f"init_lora_weights = {begun!r} has changed the model, and the server has the one from before"
        for key in _UNHEEDED:
            if self.config.get(key):
                return f"its {key} is not known to servers"
        if self.config.get("bias", "none") != "none":
            return "its biases are not known to servers"
        return unloadable(self.targets)


def unloadable(targets: Sequence[str]) -> str | None:
    """Say which module is missing beside those that an adapter changes, for a server to take it.

    Args:
        targets: Names of modules.

    Example:
        >>> unloadable(("q_proj", "v_proj", "o_proj")), unloadable(("k_proj",))
        (None, 'a server takes k_proj only together with q_proj')
    """
    for target in targets:
        if (other := _TOGETHER.get(target)) is not None and other not in targets:
            return f"a server takes {target} only together with {other}"
    return None
