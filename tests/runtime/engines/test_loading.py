from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from icrl.errors import ConfigError, WeightSyncError
from icrl.runtime.engines import loading
from icrl.runtime.engines.architecture import read_info, refusal
from icrl.runtime.engines.loading import copy_weights, load


def open_model(directory: str) -> Any:
    return load(directory, dtype="auto", device="cpu", threads=None)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("Mistral", {"sliding_window": 16}, "attends to a sliding window of 16 tokens"),
        ("Gemma2", {"head_dim": 8}, "has layers of type 'sliding_attention'"),
        ("Gemma2", {"head_dim": 8, "layer_types": ["full_attention"] * 2}, "caps its attention scores"),
        (
            "Llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rescales its positions",
        ),
        ("Mamba", {"state_size": 4}, "has layers of type 'linear_attention'"),
        ("Bloom", {}, "does not let its attention function be replaced"),
    ],
)
def test_other_architectures_are_refused_by_name(
    saved: Callable[..., str], kind: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=rf"\({kind.lower()}\).*{reason}.*full-attention decoders"):
        open_model(saved(kind, **changes))


def test_attention_sinks_are_refused_when_the_model_asks_for_them(saved: Callable[..., str]) -> None:
    directory = saved("GptOss", num_local_experts=4, layer_types=["full_attention"] * 2)
    with pytest.raises(ConfigError, match="GptOssAttention asks for s_aux"):
        open_model(directory)


def test_a_model_that_computes_something_else_is_found_out(
    saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "refusal", lambda *_: None)
    with pytest.raises(ConfigError, match=r"\(bloom\) does not compute plain attention \(logits differ by"):
        open_model(saved("Bloom"))


def test_an_encoder_decoder_is_refused() -> None:
    from transformers import T5Config

    assert refusal(T5Config()) == "is an encoder-decoder"


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Llama", "Mistral", "GPT2", "Gemma", "Qwen3Moe"])
def test_full_attention_decoders_load(saved: Callable[..., str], kind: str) -> None:
    changes = {
        "Mistral": {"sliding_window": None},
        "Gemma": {"head_dim": 8},
        "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2},
    }.get(kind, {})
    loaded = open_model(saved(kind, **changes))
    assert (loaded.dtype, loaded.device.type, loaded.threads) == (torch.float32, "cpu", 1)
    assert loaded.kv_tokens > 1000


def test_a_missing_or_broken_model_is_a_config_error(tmp_path: Path, saved: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text((Path(saved()) / "config.json").read_text())
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_model(str(tmp_path))


def test_info_is_read_from_the_configuration_alone(tmp_path: Path, saved: Callable[..., str]) -> None:
    info = read_info(saved())
    assert (info.vocab_size, info.context_limit, info.weight_version) == (96, 192, 0)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 5}))
    with pytest.raises(ConfigError, match="does not state its max_position_embeddings"):
        read_info(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"no readable config\.json"):
        read_info(str(tmp_path))


def test_end_ids_come_from_the_generation_config(saved: Callable[..., str]) -> None:
    assert open_model(saved(eos_token_id=[3, 4])).end_ids == {3, 4}
    assert open_model(saved(eos_token_id=5)).end_ids == {5}
    assert open_model(saved()).end_ids == frozenset()


def test_weights_are_copied_not_shared(build: Callable[..., Any]) -> None:
    target, source = build("Qwen2"), build("Qwen2")
    weights = {name: tensor.detach().clone() + 1 for name, tensor in source.named_parameters()}
    copy_weights(target, weights.items())
    own = target.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())
    next(iter(weights.values())).zero_()
    assert own[next(iter(weights))].any()


def test_a_tied_weight_may_come_under_either_name_or_both(build: Callable[..., Any]) -> None:
    model = build("Qwen2", tie_word_embeddings=True)
    full = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for left_out in ("lm_head.weight", "model.embed_tokens.weight", None):
        given = {name: tensor + 1 for name, tensor in full.items() if name != left_out}
        copy_weights(model, given.items())
        assert torch.equal(model.lm_head.weight, full["lm_head.weight"] + 1)
        assert torch.equal(model.model.embed_tokens.weight, full["lm_head.weight"] + 1)


def test_wrong_names_and_shapes_are_named_and_nothing_changes(build: Callable[..., Any]) -> None:
    model = build("Qwen2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = {name: tensor + 1 for name, tensor in before.items()}
    missing = {name: tensor for name, tensor in changed.items() if name != "model.norm.weight"}
    with pytest.raises(WeightSyncError, match=r"no weight was given for 'model.norm.weight' \(1 missing\)"):
        copy_weights(model, missing.items())
    with pytest.raises(WeightSyncError, match=r"no weight 'model.nrm.weight' .* mean 'model.norm.weight'"):
        copy_weights(model, {**changed, "model.nrm.weight": torch.ones(1)}.items())
    with pytest.raises(WeightSyncError, match=r"model.norm.weight: shape \(3,\), the model has \(32,\)"):
        copy_weights(model, {**changed, "model.norm.weight": torch.ones(3)}.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
