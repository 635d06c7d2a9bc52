"""Write and read the embedded model as a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from icrl.tiny.model import ModelConfig, TinyQwen2

__all__ = ["load", "save"]


def save(model: TinyQwen2, directory: Path, *, pad_id: int, end_id: int) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` (bfloat16) as transformers does.

    Args:
        model: What to write.
        directory: An existing directory.
        pad_id: Padding token.
        end_id: End-of-turn token.
    """
    from safetensors.torch import save_file

    special = {"bos_token_id": None, "eos_token_id": end_id, "pad_token_id": pad_id}
    _write_json(directory / "config.json", _hugging_face_config(model.config) | special)
    _write_json(directory / "generation_config.json", special)
    weights = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _hugging_face_config(config: ModelConfig) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
    }


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load(directory: Path) -> TinyQwen2:
    """Read a directory written by `save`, or by transformers for the same architecture, in float32."""
    from safetensors.torch import load_file

    raw = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    rope = raw.get("rope_parameters") or raw
    config = ModelConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        rope_theta=rope["rope_theta"],
    )
    model = TinyQwen2(config)
    model.load_state_dict({n: w.float() for n, w in load_file(directory / "model.safetensors").items()})
    return model
