from __future__ import annotations

from pathlib import Path

import pytest
import torch

from icrl.tiny import BASE_DIR
from icrl.tiny.checkpoint import load, save
from icrl.tiny.model import Cache, ModelConfig, TinyQwen2
from icrl.tiny.pretrain import copy_accuracy

CONFIG = ModelConfig(vocab_size=600)


@pytest.fixture
def model() -> TinyQwen2:
    torch.manual_seed(0)
    model = TinyQwen2(CONFIG)
    model.induction_init()
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return model.eval()


def test_hand_built_induction_head_copies_before_any_training():
    torch.manual_seed(0)
    model = TinyQwen2(CONFIG)
    assert copy_accuracy(model) < 0.05
    model.induction_init()
    assert copy_accuracy(model) > 0.85


@torch.no_grad()
def test_cached_steps_equal_one_pass(model: TinyQwen2):
    ids = torch.randint(600, (2, 12))
    whole = model(ids)
    cache = Cache()
    parts = [model.hidden(ids[:, :5], cache=cache)]
    for i in range(5, 12):
        mask = torch.zeros(1, 1, 1, i + 1)
        parts.append(model.hidden(ids[:, i : i + 1], positions_BT=torch.tensor([[i]]), mask=mask, cache=cache))
    torch.testing.assert_close(model.logits(torch.cat(parts, 1)), whole, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_cache_keeps_what_it_holds_when_it_grows_and_selects():
    cache = Cache()
    before = torch.randn(2, 1, 3, 4)
    cache.extend(0, before, before)
    cache.length = 3
    cache.select(torch.tensor([1, 1, 0]))
    more = torch.randn(3, 1, 200, 4)
    k, v = cache.extend(0, more, -more)
    assert torch.equal(k, torch.cat((before[[1, 1, 0]], more), 2))
    assert torch.equal(v[:, :, 3:], -more)


@torch.no_grad()
def test_saved_directory_is_a_transformers_qwen2(model: TinyQwen2, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    save(model, tmp_path, pad_id=0, end_id=2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    assert theirs.generation_config.eos_token_id == 2
    ids = torch.randint(600, (2, 30))
    ours = load(tmp_path)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_load_reads_what_save_wrote(model: TinyQwen2, tmp_path: Path):
    save(model, tmp_path, pad_id=0, end_id=2)
    again = load(tmp_path)
    assert again.config == CONFIG
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.to(torch.bfloat16).float(), q), name


def test_shipped_base_is_small_and_whole():
    base = load(BASE_DIR)
    assert 1_000_000 < sum(p.numel() for p in base.parameters()) < 1_300_000
    assert all(torch.isfinite(p).all() for p in base.parameters())
