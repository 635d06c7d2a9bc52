"""Pretrain the embedded base from nothing: `python -m icrl.tiny.pretrain --seed 1 --output DIR`.

Two phases of made-up text: short episodes and much copying first, then longer episodes. Everything follows from the
seed, as far as torch's CPU arithmetic repeats itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icrl.errors import ConfigError
from icrl.tiny import probe
from icrl.tiny.checkpoint import save
from icrl.tiny.documents import Mixture, documents
from icrl.tiny.model import ModelConfig, TinyQwen2
from icrl.tiny.tokenizer import END_OF_TEXT, END_OF_TURN, START_OF_TURN, build_tokenizer

__all__ = ["PHASES", "Phase", "PretrainConfig", "Progress", "copy_accuracy", "main", "packed_rows", "pretrain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of pretraining with one kind of text."""

    steps: int
    """Optimizer steps."""
    rows: int
    """Rows of one step."""
    length: int
    """Tokens of one row."""
    mixture: Mixture
    """What to read."""
    warmup: int
    """Steps over which the learning rate rises."""
    decay: float
    """Last share of the steps over which the learning rate falls to a twentieth."""

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0, relative to the peak."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, max(0.05, left))


_LONG = Mixture(episodes=0.7, reading=0.1, repeats=0.1, pairs=0.05, prose=0.05, records=(3, 6), sums=0.25)

PHASES = (
    Phase(
        steps=1000,
        rows=10,
        length=320,
        mixture=Mixture(episodes=0.45, reading=0.12, repeats=0.22, pairs=0.13, prose=0.08, records=(2, 5), sums=0.25),
        warmup=100,
        decay=0.0,
    ),
    Phase(
        steps=1800,
        rows=8,
        length=384,
        mixture=_LONG,
        warmup=20,
        decay=0.6,
    ),
    Phase(
        steps=900,
        rows=8,
        length=384,
        mixture=replace(_LONG, choices=0.5),
        warmup=20,
        decay=0.6,
    ),
)
"""How the shipped base was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Settings of the script."""

    output: Path
    """Directory to write; made if it is not there."""
    seed: int = 1
    """Decides initial weights and text."""
    threads: int = 1
    """Torch threads; the result is repeatable at one number of threads only."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the matrix products; float32 is faster on CPUs without bfloat16 instructions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where pretraining stands."""

    phase: int
    """Index of the phase."""
    step: int
    """Steps done in this phase."""
    loss: float
    """Cross-entropy of the last step, in nats a token."""
    model: TinyQwen2
    """The model as it is now."""


_PEAK_RATE = 1.5e-3


def pretrain(
    tokenizer: Any,
    shape: ModelConfig,
    phases: tuple[Phase, ...],
    *,
    seed: int,
    dtype: torch.dtype,
    on_step: Callable[[Progress], None],
) -> TinyQwen2:
    """Train a model from nothing.

    Args:
        tokenizer: A `tokenizers.Tokenizer` with the special tokens of `icrl.tiny.tokenizer`.
        shape: The model's shape.
        phases: What to do, in order.
        seed: Decides initial weights and text.
        dtype: Arithmetic of the matrix products.
        on_step: Called after every step.

    Raises:
        ConfigError: This torch has no Muon optimizer.
    """
    torch.manual_seed(seed)
    model = TinyQwen2(shape)
    model.induction_init()
    for i, phase in enumerate(phases):
        optimizers = _optimizers(model)
        rows = packed_rows(documents(Random(f"{seed}/{i}"), phase.mixture), tokenizer, phase)
        for step in range(phase.steps):
            loss = _step(model, optimizers, next(rows), _PEAK_RATE * phase.rate(step), dtype)
            on_step(Progress(phase=i, step=step + 1, loss=loss, model=model))
    return model


def _optimizers(model: TinyQwen2) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"torch {torch.__version__} has no Muon optimizer; pretraining needs torch >= 2.9")
    inner = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return (
        torch.optim.Muon(inner, lr=_PEAK_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other, lr=_PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    )


def _step(
    model: TinyQwen2, optimizers: tuple[torch.optim.Optimizer, ...], ids_BT: Tensor, rate: float, dtype: torch.dtype
) -> float:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(ids_BT[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids_BT[:, 1:].flatten())
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return loss.item()


def packed_rows(texts: Iterator[str], tokenizer: Any, phase: Phase) -> Iterator[Tensor]:
    """Cut an endless stream of documents into [rows, length + 1] batches; documents may straddle rows.

    A chat document ends with the end-of-turn token, any other with the end-of-text token.
    """
    plain, chat = (tokenizer.token_to_id(t) for t in (END_OF_TEXT, END_OF_TURN))
    need = phase.rows * (phase.length + 1)
    held: list[int] = []
    for text in texts:
        held += tokenizer.encode(text).ids
        held.append(chat if START_OF_TURN in text else plain)
        if len(held) >= need:
            yield torch.tensor(held[:need]).view(phase.rows, -1)
            held = held[need:]


@torch.no_grad()
def copy_accuracy(model: TinyQwen2, period: int = 40) -> float:
    """Share of tokens predicted right in the second half of a random sequence that is said twice."""
    generator = torch.Generator().manual_seed(0)
    once = torch.randint(model.config.vocab_size // 8, model.config.vocab_size, (16, period), generator=generator)
    twice = once.repeat(1, 2)
    guess = model(twice[:, :-1])[:, period:].argmax(-1)
    return float((guess == twice[:, period + 1 :]).float().mean())


def main(config: PretrainConfig) -> None:
    """Build the tokenizer, pretrain, write a Hugging Face directory and probe it."""
    from tokenizers import Tokenizer

    torch.set_num_threads(config.threads)
    config.output.mkdir(parents=True, exist_ok=True)
    build_tokenizer(config.output)
    tokenizer: Any = Tokenizer.from_file(str(config.output / "tokenizer.json"))
    started = time.perf_counter()

    def show(progress: Progress) -> None:
        if progress.step % 50 == 0:
            clock = f"{time.perf_counter() - started:4.0f} s"
            copies = f"copies {copy_accuracy(progress.model):.2f}"
            sys.stdout.write(
                f"phase {progress.phase} step {progress.step:4d} loss {progress.loss:.3f} {copies} {clock}\n"
            )
            sys.stdout.flush()

    shape = ModelConfig(vocab_size=tokenizer.get_vocab_size())
    dtype = getattr(torch, config.precision)
    model = pretrain(tokenizer, shape, PHASES, seed=config.seed, dtype=dtype, on_step=show)
    pad_id, end_id = (tokenizer.token_to_id(t) for t in (END_OF_TEXT, END_OF_TURN))
    save(model, config.output, pad_id=pad_id, end_id=end_id)
    probe.main(config.output)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(PretrainConfig))
