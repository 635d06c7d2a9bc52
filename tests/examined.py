"""The embedded model as a subject of the conformance checks, whatever runs it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from forward_pass import ROUNDING
from safetensors.torch import load_file  # brings torch, which nobody may import inside a loop

from icrl.runtime.engines.adapter import Adapter
from icrl.testing.conformance import Subject
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.types import Message

WORDS = ChatTokenizer.load(BASE_DIR)


@functools.cache
def base_weights() -> dict[str, Any]:
    return load_file(BASE_DIR / "model.safetensors")


@functools.cache
def no_change() -> Adapter:
    """An adapter that leaves the embedded model as it is."""
    tensors = {}
    for name, weight in base_weights().items():
        if name.endswith("o_proj.weight"):
            module = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = weight.new_ones(2, weight.shape[1])
            tensors[f"{module}.lora_B.weight"] = weight.new_zeros(weight.shape[0], 2)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"], "bias": "none"}
    return Adapter(config=config, tensors=tensors)


@functools.cache
def base_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype="float32").eval()


@functools.cache
def exact_model() -> Any:
    return copy.deepcopy(base_model()).double()


def full_pass(prompt: Sequence[int], ids: Sequence[int], temperature: float) -> list[float]:
    """Log-probabilities from one ordinary forward pass, in float64: what is examined rounds, this does not."""
    import torch

    with torch.inference_mode():
        logits = exact_model()(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return (logits / (temperature or 1.0)).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


def base_subject(engine: Any, **known: Any) -> Subject:
    """The embedded model: it asks itself questions for ever, and answers one that it is asked."""
    exact_model()
    (asked,) = WORDS.render([Message(role="user", content="What is the code of Rikor?")])
    known = {
        "weights": lambda: base_weights().items(),
        "logprobs": full_pass,
        "tolerance": ROUNDING,
        "long_tokens": 600,
        **known,
    }
    return Subject(
        engine=engine, tokenizer=WORDS, prompt=WORDS.encode("Question:"), ending=WORDS.encode(asked), **known
    )
