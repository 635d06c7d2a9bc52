from __future__ import annotations

import dataclasses
import shutil
import sys
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from icrl.errors import ConfigError
from icrl.tiny import BASE_DIR, pretrain
from icrl.tiny.checkpoint import load
from icrl.tiny.documents import documents
from icrl.tiny.model import ModelConfig
from icrl.tiny.pretrain import PHASES, Phase, PretrainConfig, Progress

SHORT = tuple(dataclasses.replace(p, steps=2, rows=2, length=48, warmup=1) for p in PHASES)


def train(tokenizer: Tokenizer, seed: int) -> tuple[torch.nn.Module, list[Progress]]:
    seen: list[Progress] = []
    shape = ModelConfig(vocab_size=tokenizer.get_vocab_size(), layers=2)
    model = pretrain.pretrain(tokenizer, shape, SHORT, seed=seed, dtype=torch.float32, on_step=seen.append)
    return model, seen


def test_same_seed_same_weights(tokenizer: Tokenizer):
    (one, seen), (two, _), (other, _) = (train(tokenizer, seed) for seed in (1, 1, 2))
    assert [(p.phase, p.step) for p in seen] == [(i, s) for i in range(len(PHASES)) for s in (1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_pretraining_learns(tokenizer: Tokenizer):
    phase = dataclasses.replace(PHASES[0], steps=20, rows=4, length=64, warmup=5)
    unseen = torch.cat(list(islice(pretrain.packed_rows(documents(Random(9), phase.mixture), tokenizer, phase), 8)))
    losses = []

    @torch.no_grad()
    def judge(progress: Progress) -> None:
        if progress.step in (1, phase.steps):
            logits = progress.model(unseen[:, :-1]).flatten(0, 1)
            losses.append(torch.nn.functional.cross_entropy(logits, unseen[:, 1:].flatten()).item())

    shape = ModelConfig(vocab_size=tokenizer.get_vocab_size(), layers=2)
    pretrain.pretrain(tokenizer, shape, (phase,), seed=0, dtype=torch.float32, on_step=judge)
    assert losses[1] < losses[0] - 0.3


def test_rows_are_the_documents_end_to_end(tokenizer: Tokenizer):
    phase = SHORT[0]
    rows = torch.cat(list(islice(pretrain.packed_rows(documents(Random(0), phase.mixture), tokenizer, phase), 40)))
    assert rows.shape == (80, 49)
    texts = tokenizer.decode(rows.flatten().tolist(), skip_special_tokens=False)
    first = next(documents(Random(0), phase.mixture))
    assert texts.startswith(first)
    assert "<|endoftext|>" in texts
    assert "assistant\n" in texts


def test_rate_rises_holds_and_falls():
    phase = Phase(steps=100, rows=1, length=8, mixture=PHASES[0].mixture, warmup=10, decay=0.5)
    rates = [phase.rate(s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[50] == 1
    assert rates[75] == pytest.approx(0.5)
    assert rates[-1] == 0.05


def test_old_torch_is_told_what_is_missing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"torch >= 2\.9"):
        train(tokenizer, 0)


def test_script_writes_a_directory_and_prints_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(pretrain, "PHASES", SHORT[:1])
    monkeypatch.setattr(pretrain, "build_tokenizer", lambda there: shutil.copytree(BASE_DIR, there, dirs_exist_ok=True))
    monkeypatch.setattr("icrl.tiny.probe.main", lambda directory: sys.stdout.write(f"probed {directory.name}"))
    pretrain.main(PretrainConfig(output=tmp_path / "new", precision="float32"))
    made, shipped = load(tmp_path / "new"), load(BASE_DIR)
    assert made.config == shipped.config
    assert not torch.equal(made.model.embed_tokens.weight, shipped.model.embed_tokens.weight)
    assert "probed new" in capsys.readouterr().out
