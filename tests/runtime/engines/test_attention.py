from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from icrl.errors import ConfigError
from icrl.runtime.engines.attention import (
    DenseKeys,
    Shared,
    attend,
    our_attention,
    shared_prefix_hidden,
    supports_attention,
)

LENGTHS = torch.tensor([5, 9, 1, 7])


def rows_and_prefix(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, 96, (length + 36,), generator=generator)
    return ids[:length], ids[length:].view(4, 9)


@pytest.mark.parametrize("prefix_length", [0, 1, 13])
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Llama"])
def test_shared_prefix_equals_the_unshared_forward_with_gradients(
    build: Callable[..., Any], kind: str, prefix_length: int
) -> None:
    shared = build(kind, initializer_range=0.02)
    unshared = copy.deepcopy(shared)
    unshared.set_attn_implementation("eager")
    prefix, rows = rows_and_prefix(prefix_length)
    valid = torch.arange(9) < LENGTHS[:, None]

    hidden = shared_prefix_hidden(shared, prefix, rows, LENGTHS)
    logits = shared.lm_head(hidden)[valid]
    full = torch.cat((prefix.expand(4, -1), rows), 1)
    expected = unshared(full).logits[:, prefix_length:][valid]

    assert hidden.shape == (4, 9, 32)
    assert not hidden[~valid].any()
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, one), two in zip(shared.named_parameters(), unshared.parameters(), strict=True):
        assert (one.grad - two.grad).norm() <= 1e-5 * two.grad.norm() + 1e-6, name


def test_shared_prefix_works_under_autocast(build: Callable[..., Any]) -> None:
    model = build("Qwen2")
    prefix, rows = rows_and_prefix(13)
    exact = shared_prefix_hidden(model, prefix, rows, LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        rough = shared_prefix_hidden(model, prefix, rows, LENGTHS)
        rough.sum().backward()
    assert 0 < (rough - exact).abs().mean() < 0.1 * exact.abs().mean()
    assert all(p.grad.isfinite().all() for p in model.model.parameters())


def test_the_model_keeps_its_own_attention(build: Callable[..., Any]) -> None:
    model = build("Qwen2")
    ids = torch.arange(12)[None]
    mask = torch.tensor([[0] * 4 + [1] * 8])
    before = model(ids, attention_mask=mask).logits
    with pytest.raises(RuntimeError, match="stop"), our_attention(model):
        raise RuntimeError("stop")
    shared_prefix_hidden(model, ids[0, :3], ids[:, 3:], torch.tensor([9]))
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids, attention_mask=mask).logits, before)


def test_gradient_checkpointing_is_refused(build: Callable[..., Any]) -> None:
    model = build("Qwen2").train()
    model.activation_checkpointing_enable()
    with pytest.raises(ConfigError, match="Qwen2ForCausalLM uses gradient checkpointing"):
        shared_prefix_hidden(model, *rows_and_prefix(3), LENGTHS)


# peft 0.21 asks transformers 5.23 for an attribute under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_peft_model_is_unwrapped(build: Callable[..., Any]) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("Qwen2"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    prefix, rows = rows_and_prefix(6)
    hidden = shared_prefix_hidden(model, prefix, rows, LENGTHS)
    expected = model.get_base_model().model(torch.cat((prefix, rows[1]))[None]).last_hidden_state[0, 6:]
    assert torch.allclose(hidden[1], expected, atol=1e-4)
    hidden.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_supported_models_are_told_by_their_configuration(build: Callable[..., Any]) -> None:
    assert supports_attention(build("Llama"))
    assert not supports_attention(build("Mistral", sliding_window=16))


def test_a_model_that_asks_for_more_than_attention_is_refused_by_name(build: Callable[..., Any]) -> None:
    model = build("Qwen2")
    with our_attention(model), pytest.raises(ConfigError, match="Qwen2Attention does not pass keyword arguments"):
        model(torch.arange(5)[None])
    with our_attention(model), pytest.raises(ConfigError, match="Qwen2Attention asks for softcap"):
        model(torch.arange(5)[None], icrl_layout=object(), softcap=3.0)


def test_rows_with_different_prefixes_or_none_attend_to_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, 2, 3, 8, generator=generator)
    keys, values = torch.randn(2, 5, 2, 7, 8, generator=generator)
    mask = torch.zeros(5, 3, 7).masked_fill_(torch.arange(7) > torch.tensor([2, 6, 3, 4, 5])[:, None, None], -torch.inf)
    prefixes = [torch.randn(2, 2, length, 8, generator=generator) for length in (4, 9)]
    members = [torch.tensor([0, 3]), torch.tensor([1])]
    shared = [Shared(rows, k, v) for rows, (k, v) in zip(members, prefixes, strict=True)]

    out = attend(query, DenseKeys(keys, values, mask), shared)
    for row in range(5):
        mine = next((p for rows, p in zip(members, prefixes, strict=True) if row in rows), torch.zeros(2, 2, 0, 8))
        k, v = torch.cat((mine[0], keys[row]), 1), torch.cat((mine[1], values[row]), 1)
        visible = torch.cat((torch.zeros(3, mine.size(2)), mask[row]), 1)
        expected = torch.nn.functional.scaled_dot_product_attention(query[row], k, v, attn_mask=visible, scale=1.0)
        assert torch.allclose(out[row], expected, atol=1e-6)
