"""Sample episodes with a tool from the plain-torch model: enough to probe a base, no more.

Training and agents use the engines of `icrl.runtime`; this loop exists so that pretraining can judge its own product
without them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from icrl.tiny.model import Cache, TinyQwen2
from icrl.tiny.tokenizer import END_OF_TURN

__all__ = ["Episode", "sample_episodes"]

Answerer = Callable[[str], str]
"""Gets the text a row has written so far; returns what to append before the row goes on, or an empty string."""


@dataclass(slots=True)
class Episode:
    """One row in progress."""

    text: str = ""
    """Everything after the prompt, observations included."""
    observations: int = 0
    """How often the tool answered."""
    done: bool = False
    """Whether the row has ended."""
    forced: deque[int] = field(default_factory=deque)
    """Tokens of an observation that the model has yet to read."""
    ids: list[int] = field(default_factory=list)
    """[T] tokens after the prompt."""


@torch.no_grad()
def sample_episodes(
    model: TinyQwen2,
    tokenizer: Any,
    prompts: Sequence[str],
    answer: Answerer,
    *,
    temperature: float,
    seed: int,
    stop: str,
    max_tokens: int,
) -> list[Episode]:
    """Write one episode for each prompt, all rows in step.

    Args:
        model: The model.
        tokenizer: Its `tokenizers.Tokenizer`.
        prompts: Where to start from; a prompt that stands there several times is sampled several times.
        answer: The tool, asked after every `>`.
        temperature: Divides the logits; 0 takes the likeliest token.
        seed: Seeds the draws.
        stop: Text that ends an episode, besides the end-of-turn token.
        max_tokens: Longest episode, observations included.
    """
    generator = torch.Generator().manual_seed(seed)
    episodes = [Episode() for _ in prompts]
    live = list(episodes)
    cache, logits, positions, mask = _prefill(model, [tokenizer.encode(p).ids for p in prompts])
    for _ in range(max_tokens):
        for episode, token in zip(live, _draw(logits, temperature, generator).tolist(), strict=True):
            if not episode.done:
                _advance(episode, token, tokenizer, answer, stop)
        kept = torch.tensor([i for i, e in enumerate(live) if not e.done], dtype=torch.long)
        if not len(kept):
            break
        if len(kept) < 0.7 * len(live):  # dropping rows copies the cache, so wait until it pays
            live = [e for e in live if not e.done]
            cache.select(kept)
            positions, mask = positions[kept], mask[kept]
        positions = positions + 1
        mask = F.pad(mask, (0, 1))
        last = torch.tensor([[e.ids[-1]] for e in live])
        logits = model.logits(model.hidden(last, positions_BT=positions, mask=mask, cache=cache)[:, -1])
    for episode in episodes:
        episode.text = tokenizer.decode(episode.ids)
    return episodes


def _prefill(model: TinyQwen2, prompts: list[list[int]]) -> tuple[Cache, Tensor, Tensor, Tensor]:
    """Read the prompts, padded on the left; equal ones are read once."""
    unique = list(dict.fromkeys(map(tuple, prompts)))
    rows = torch.tensor([unique.index(tuple(p)) for p in prompts])
    length = max(map(len, unique))
    pads = torch.tensor([length - len(p) for p in unique])
    ids_BT = torch.tensor([[0] * (length - len(p)) + list(p) for p in unique])
    positions_BT = (torch.arange(length)[None] - pads[:, None]).clamp(min=0)
    padding = torch.where(torch.arange(length)[None] < pads[:, None], -1e9, 0.0)[:, None, None]
    causal = torch.full((length, length), -1e9).triu(1)
    cache = Cache()
    hidden = model.hidden(ids_BT, positions_BT=positions_BT, mask=padding + causal, cache=cache)
    cache.select(rows)
    return cache, model.logits(hidden[:, -1])[rows], positions_BT[rows, -1:], padding[rows]


def _draw(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(-1)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)[:, 0]


def _advance(episode: Episode, sampled: int, tokenizer: Any, answer: Answerer, stop: str) -> None:
    """Append the next token of one row: a forced one while an observation is being read, else the sampled one."""
    if episode.forced:
        episode.ids.append(episode.forced.popleft())
        return
    episode.ids.append(sampled)
    if not tokenizer.id_to_token(sampled).endswith(">"):
        return
    text = tokenizer.decode(episode.ids, skip_special_tokens=False)
    episode.done = text.endswith((stop, END_OF_TURN))
    if not episode.done and (observation := answer(text)):
        episode.observations += 1
        episode.forced.extend(tokenizer.encode(observation).ids)
