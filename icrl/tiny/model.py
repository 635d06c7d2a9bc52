"""The embedded model in plain torch: a small Qwen2 whose parameters carry transformers' names.

Tensor suffixes: B batch, T positions of this call, S positions cached so far plus T, H heads, D head width, C hidden
width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Cache", "ModelConfig", "TinyQwen2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of the model; the defaults are the shipped one's."""

    vocab_size: int
    """Number of tokens."""
    hidden_size: int = 128
    """Width of the residual stream."""
    intermediate_size: int = 384
    """Width inside the feed-forward blocks."""
    layers: int = 4
    """Number of blocks."""
    heads: int = 2
    """Attention heads, each with its own keys and values."""
    rope_theta: float = 1e6
    """Base of the rotary position angles."""

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads


class Cache:
    """Keys and values of the positions seen so far; for inference only, since it writes in place."""

    def __init__(self) -> None:
        self.length = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append one call's keys and values and return all of the layer's, [B, H, S, D] each."""
        end = self.length + k_BHTD.shape[2]
        if layer not in self.layers or self.layers[layer][0].shape[2] < end:
            self._grow(layer, k_BHTD, end + _CACHE_ROOM)
        k, v = self.layers[layer]
        k[:, :, self.length : end] = k_BHTD
        v[:, :, self.length : end] = v_BHTD
        return k[:, :, :end], v[:, :, :end]

    def _grow(self, layer: int, like_BHTD: Tensor, room: int) -> None:
        batch, heads, _, width = like_BHTD.shape
        fresh = (like_BHTD.new_zeros(batch, heads, room, width), like_BHTD.new_zeros(batch, heads, room, width))
        for new, old in zip(fresh, self.layers.get(layer, ()), strict=False):
            new[:, :, : self.length] = old[:, :, : self.length]
        self.layers[layer] = fresh

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows of the batch."""
        self.layers = {i: (k[rows], v[rows]) for i, (k, v) in self.layers.items()}


_CACHE_ROOM = 96
"""Positions to allocate beyond what is needed now."""


class _Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_size = config.head_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def _heads(self, x_BTC: Tensor) -> Tensor:
        batch, length, _ = x_BTC.shape
        return x_BTC.view(batch, length, -1, self.head_size).transpose(1, 2)

    def forward(
        self, x_BTC: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor, cache: Cache | None, layer: int
    ) -> Tensor:
        q = _rotate(self._heads(self.q_proj(x_BTC)), *angles) * self.head_size**-0.5
        k = _rotate(self._heads(self.k_proj(x_BTC)), *angles)
        v = self._heads(self.v_proj(x_BTC))
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        # Written out: on CPUs in bfloat16 this is several times faster than torch's fused attention at these lengths.
        weights_BHTS = ((q @ k.transpose(2, 3)) + mask.to(q.dtype)).softmax(-1)
        y_BHTD = weights_BHTS @ v
        return self.o_proj(y_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_BHTD.chunk(2, -1)
    return x_BHTD * cos + torch.cat((-second, first), -1) * sin


class _FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # The cast keeps bfloat16 input on torch's fast path.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


class _Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = _Norm(config.hidden_size)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _Norm(config.hidden_size)
        self.mlp = _FeedForward(config)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor, cache: Cache | None, layer: int
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class _Body(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm = _Norm(config.hidden_size)


class TinyQwen2(nn.Module):
    """Qwen2 with tied embeddings, initialised to be able to copy before it has seen any data.

    Example:
        >>> model = TinyQwen2(ModelConfig(vocab_size=50, hidden_size=128))
        >>> model(torch.zeros(2, 7, dtype=torch.long)).shape
        torch.Size([2, 7, 50])
    """

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)
        exponents = torch.arange(0, config.head_size, 2).float() / config.head_size
        self.register_buffer("frequencies", config.rope_theta**-exponents, persistent=False)
        self._ordinary_init()

    def _ordinary_init(self) -> None:
        """Draw weights so that every block starts as the identity: what writes to the residual stream is zero."""
        for name, parameter in self.named_parameters():
            if "bias" in name or "o_proj" in name or "down_proj" in name:
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                std = _EMBEDDING_STD if "embed" in name else 1 / math.sqrt(parameter.shape[1])
                nn.init.normal_(parameter, std=std)

    @torch.no_grad()
    def induction_init(self) -> None:
        """Build an induction head by hand, so that the model can copy from its context from the first step on.

        Head 0 of layer 0 looks at the previous token: with constant queries and keys (their biases; this is why the
        model is a Qwen2) rotary attention depends on distance alone, and the biases are chosen to peak at distance
        one. It writes that token's embedding into directions of its own. Head 0 of layer 1 then looks for an earlier
        position whose *previous* token was the current one, and writes the embedding of the token found there, which
        the tied output layer reads as a prediction. No data is used, and nothing here knows any format.
        """
        width, size = self.config.hidden_size, self.config.head_size
        half = size // 2
        source = torch.Generator().manual_seed(1)
        current, previous = (torch.linalg.qr(torch.randn(width, width, generator=source))[0][:size] for _ in range(2))
        scale = _EMBEDDING_STD * math.sqrt(width / size)
        first, second = (self.model.layers[i].self_attn for i in range(2))
        assert isinstance(first, _Attention)
        assert isinstance(second, _Attention)

        fast = torch.where(torch.arange(half) < _PREVIOUS_PAIRS, _PREVIOUS_SHARPNESS, 0.0)
        for projection in (first.q_proj, first.k_proj):
            projection.weight[:size] *= 0.05
        first.q_proj.bias[:half] = fast
        first.k_proj.bias[:half] = fast * self.frequencies.cos()
        first.k_proj.bias[half:size] = fast * self.frequencies.sin()
        first.v_proj.weight[:size] = current
        first.o_proj.weight[:, :size] = previous.T * scale

        # Matching uses only the pairs that rotate slowly: their dot product hardly depends on distance.
        slow = torch.arange(half - _MATCH_PAIRS, half)
        rows = torch.cat((slow, slow + half))
        for projection, directions in ((second.q_proj, current), (second.k_proj, previous)):
            projection.weight[:size] = 0
            projection.weight[rows] = _MATCH_SHARPNESS * directions[rows]
        second.v_proj.weight[:size] = current
        second.o_proj.weight[:, :size] = current.T * (_COPY_GAIN * scale)

    def hidden(
        self,
        ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Run the blocks.

        Args:
            ids_BT: Token ids.
            positions_BT: Position of each token; 0, 1, … if not given.
            mask: Added to the attention scores, broadcastable to [B, 1, T, S]; causal if not given.
            cache: Receives this call's keys and values and supplies the earlier ones.

        Returns:
            [B, T, C] normalised activations.
        """
        length = ids_BT.shape[1]
        positions = torch.arange(length)[None] if positions_BT is None else positions_BT
        mask = torch.full((length, length), -1e9).triu(1) if mask is None else mask
        x = self.model.embed_tokens(ids_BT)
        turns = positions[..., None].float() * self.frequencies
        turns = torch.cat((turns, turns), -1)[:, None]
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        angles = (turns.cos().to(dtype), turns.sin().to(dtype))
        for i, block in enumerate(self.model.layers):
            x = block(x, angles, mask, cache, i)
        if cache is not None:
            cache.length += length
        return self.model.norm(x)  # type: ignore[no-any-return]

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return [B, T, V] logits of causal text."""
        return self.logits(self.hidden(ids_BT))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits for any leading shape, through the tied embedding."""
        return F.linear(hidden, self.model.embed_tokens.weight)


_EMBEDDING_STD = 0.1
_PREVIOUS_PAIRS = 12
"""Fast rotary pairs that tell distance one from all others."""
_PREVIOUS_SHARPNESS = 8.0
_MATCH_PAIRS = 22
_MATCH_SHARPNESS = 3.0
_COPY_GAIN = 6.0
